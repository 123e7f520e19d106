"""Parameters that the interfaces share, checked against the server's bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma4_core import InputError
from gemma4_core.openai import IGNORED, KNOWN, parameters
from gemma4_serve.engine.contract import Asked, ModelCard
from gemma4_serve.errors import ApiError, refused, wrong
from gemma4_serve.settings import Limits, Settings

REQUEST = (
    "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "stop", "ignore_eos", "tools", "thinking", "thinking_budget",
    "top_logprobs", "constraint", "n",
)  # fmt: skip
"""What ``parameters`` finds that is an argument of ``gemma4_core.Request``."""
READ = tuple(name for name in KNOWN if name not in (*IGNORED, "stream", "prompt", "text", "messages"))
LONGEST_SALT = 256


def asked_of(body: Mapping[str, Any], prompt: Mapping[str, Any], card: ModelCard, settings: Settings) -> tuple[
    Asked, dict[str, Any]
]:
    """What a body asks for, and its parameters.

    Args:
        body: parameters under OpenAI's names; those that are not known are ignored, as OpenAI's clients send many.
        prompt: ``{"messages": …}``, rebuilt by ``clean_messages``, or ``{"text": …}``.
        card: the model, for adapters and the vocabulary.
        settings: bounds.

    Raises:
        ApiError: a parameter that is wrong, beyond its bounds, or of something that is not served.
    """
    given = {name: body[name] for name in READ if body.get(name) is not None}
    check_bounds(given, card, settings.limits)
    try:
        kind, found, values = parameters({**given, **prompt})
    except InputError as error:
        raise refused(error, KNOWN) from error
    if "thinking" not in values and settings.thinking:
        values["thinking"] = True
    options = {name: values[name] for name in REQUEST if name in values}
    if not options.get("tools"):
        options.pop("tools", None)
    options["adapter"] = adapter_of(body.get("model"), card)
    options["salt"] = salt_of(body)
    return Asked("messages" if kind == "messages" else "prompt", found, options, one_call(values)), values


def one_call(values: Mapping[str, Any]) -> bool:
    """Whether an answer may hold one tool call alone."""
    return values.get("parallel_tool_calls") is False


def check_bounds(given: Mapping[str, Any], card: ModelCard, limits: Limits) -> None:
    """Raise ApiError for what asks for too much."""
    n, stop = given.get("n"), given.get("stop")
    if isinstance(n, int) and n > limits.answers:
        raise wrong(f"n {n}: at most {limits.answers} answers", "n")
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    if len(stops) > limits.stops or any(isinstance(one, str) and len(one) > limits.stop_characters for one in stops):
        raise wrong(f"stop: at most {limits.stops} texts of {limits.stop_characters} characters", "stop")
    tools = given.get("tools")
    if isinstance(tools, list) and len(tools) > limits.tools:
        raise wrong(f"tools: at most {limits.tools}", "tools")
    for name in ("tools", "response_format", "tool_choice"):
        if name in given and len(json.dumps(given[name])) > limits.schema_bytes * (4 if name == "tools" else 1):
            raise wrong(f"{name}: larger than {limits.schema_bytes >> 10} kB", name)
    bias = given.get("logit_bias")
    if isinstance(bias, Mapping):
        if len(bias) > limits.biases:
            raise wrong(f"logit_bias: at most {limits.biases} ids", "logit_bias")
        for token in bias:
            if token.isdecimal() and int(token[:12]) >= card.vocabulary:
                raise wrong(f"logit_bias: {token[:12]} is outside the vocabulary of {card.vocabulary}", "logit_bias")


def salt_of(body: Mapping[str, Any]) -> str:
    """Prompts share beginnings with those of equal ``cache_salt`` alone. Raises ApiError."""
    salt = body.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not 0 < len(salt) <= LONGEST_SALT:
        raise wrong(f"cache_salt must be text of 1 to {LONGEST_SALT} characters", "cache_salt")
    return salt


def adapter_of(model: Any, card: ModelCard) -> str | None:
    """The engine's adapter that a model's name asks for. Where one model is served, any name means it. Raises ApiError
    for a name that is none of several."""
    if model is not None and (not isinstance(model, str) or len(model) > 512):
        raise wrong("model must be a name", "model")
    if not model or not card.adapters or model == card.name:
        return None
    for name, own in card.adapters.items():
        if model in (f"{card.name}:{name}", name):
            return own
    raise ApiError(404, f"there is no model {json.dumps(model[:80])}; /v1/models lists those that there are",
                   "model_not_found", "model")


def model_name(asked: Asked, card: ModelCard) -> str:
    """The name of the model that answers."""
    adapter = asked.options.get("adapter")
    name = next((name for name, own in card.adapters.items() if own == adapter), None) if adapter else None
    return card.name if name is None else f"{card.name}:{name}"


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A parameter that is true or false, false where it is absent. Raises ApiError."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(f"{name} must be true or false", name)
    return bool(value)
