"""The parameters of a chat completion, checked, and named as ``Request`` names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import is_number, shown
from gemma4_core.plugins import registry
from gemma4_core.plugins.origin import nearest
from gemma4_core.processing.messages import as_text, kind, read_messages
from gemma4_core.text.messages import PART_TYPES, template_messages
from gemma4_core.text.tools import tool_declarations

PROMPTS = ("messages", "prompt", "text")
"""What a body has exactly one of: a conversation, a user's message, a raw text to go on with."""
IGNORED = (
    "metadata", "model", "moderation", "prediction", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "stream_options", "user", "verbosity",
)
"""Parameters of OpenAI's that change nothing here."""
LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
MOST_TOKENS = 1 << 27


def parameters(body: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """The kind of prompt of a body, the prompt, and keyword arguments of ``Request``; parameters that are null count
    as absent. Beside those, ``logprobs`` and ``parallel_tool_calls`` are what they are in the body.

    Raises InputError for none or two prompts, an unknown parameter (naming the nearest) and a wrong value.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in KNOWN:
            raise InputError(f"unknown parameter {shown(name, 60)}{nearest(name, KNOWN)}".rstrip("?"))
    prompts = [name for name in PROMPTS if name in given]
    if len(prompts) != 1:
        found = f"{' and '.join(prompts)} are given" if prompts else "there is no prompt"
        raise InputError(f"{found}; give exactly one of {', '.join(PROMPTS)}")
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if name in READERS:
            asked |= READERS[name](name, value)
    lengths = [name for name in LENGTHS if name in given]
    if len(lengths) > 1:
        raise InputError(f"{' and '.join(lengths)} mean the same; give one of them")
    if "tool_choice" in given:
        choose_tools(given["tool_choice"], asked)
    return prompts[0], _prompt(prompts[0], given[prompts[0]]), asked


def _prompt(name: str, value: Any) -> Any:
    """The prompt as it was given, once it is known to be one."""
    if name == "messages":
        specs = list(registry.modalities.values())
        talk = read_messages(value, specs)
        template_messages(as_text(talk.messages, [spec for spec in specs if kind(spec) not in PART_TYPES]))
    elif not isinstance(value, str):
        raise InputError(f"{name} {shown(value, 60)}: must be text")
    elif not value.strip():
        raise InputError(f"{name} {shown(value, 60)}: the prompt is empty")
    return value


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{name} {shown(value, 60)}: must be {wanted}")


def _number(name: str, value: Any) -> dict[str, Any]:
    if not is_number(value):
        raise _wrong(name, value, "a number")
    return {name: value}  # Request checks its bounds


def _whole(name: str, value: Any, low: int, high: int, keyword: str | None = None) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, value, f"a whole number from {low} to {high}")
    return {keyword or name: value}


def _flag(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return {name: value}


def _stop(name: str, value: Any) -> dict[str, Any]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong(name, value, "a text that is not empty, or a list of them")
    return {"stop": tuple(stops)}


def _bias(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object of numbers by token id")
    for token, added in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise InputError(f"{name}: {shown(token, 60)} is not a token id")
        if not is_number(added):
            raise InputError(f"{name} {token}: {shown(added, 60)} is not a number")
    return {"logit_bias": {int(token): added for token, added in value.items()}}


def _tools(name: str, value: Any) -> dict[str, Any]:
    return {"tools": tool_declarations(value) or None}


def choose_tools(choice: Any, asked: dict[str, Any]) -> None:
    """Apply a ``tool_choice`` to the arguments of a request: drop tools, keep those that are allowed, or add the
    constraint that an answer calls one. Raises InputError."""
    wanted: Any = choice
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice["allowed_tools"] if isinstance(choice.get("allowed_tools"), Mapping) else choice
        names = {_chosen(tool) for tool in allowed.get("tools") or () if isinstance(tool, Mapping)}
        asked["tools"] = [tool for tool in asked.get("tools") or () if tool["function"]["name"] in names] or None
        wanted = allowed.get("mode", "auto")
    elif isinstance(choice, Mapping):
        wanted = {"name": _chosen(choice)}
    if wanted == "none":
        asked.pop("tools", None)
    elif wanted != "auto":
        if wanted != "required" and not (isinstance(wanted, dict) and isinstance(wanted["name"], str)):
            raise _wrong("tool_choice", choice, "none, auto, required, or an object that names a function")
        declared = {tool["function"]["name"] for tool in asked.get("tools") or ()}
        if not declared or (wanted != "required" and wanted["name"] not in declared):
            raise InputError(f"tool_choice {shown(choice, 60)}: no such tool is declared in tools")
        if "constraint" in asked:
            raise InputError(f"tool_choice {shown(choice, 60)} and response_format exclude each other")
        asked["constraint"] = {"tools": wanted}


def _chosen(choice: Mapping[str, Any]) -> Any:
    """The name of a function in OpenAI's two forms."""
    inner = choice.get("function")
    return inner.get("name") if isinstance(inner, Mapping) else choice.get("name")


def _format(name: str, value: Any) -> dict[str, Any]:
    """``response_format``: a constraint, which needs a package that builds one."""
    what = value.get("type") if isinstance(value, dict) else None
    if what == "text":
        return {}
    if what == "json_object" and "schema" not in value:
        return {"constraint": {"json_schema": {"type": "object"}}}
    inner = value.get("json_schema") if what == "json_schema" else value if what == "json_object" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise _wrong(name, value, 'an object of type "text", "json_object", or "json_schema" with a schema')
    return {"constraint": {"json_schema": schema}}


def _effort(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise _wrong(name, value, "text such as none or high")
    return {"thinking": value != "none"}


def _variables(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"enable_thinking"}:
        raise _wrong(name, value, "an object with enable_thinking alone")
    return {"thinking": bool(value["enable_thinking"])} if value else {}


def _stream(name: str, value: Any) -> dict[str, Any]:
    if value is not False:
        raise _wrong(name, value, "false")
    return {}


def _ignored(name: str, value: Any) -> dict[str, Any]:
    return {}


Reader = Callable[[str, Any], dict[str, Any]]
READERS: dict[str, Reader] = {
    **dict.fromkeys(LENGTHS, lambda name, value: _whole(name, value, 1, MOST_TOKENS, "max_new_tokens")),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), _number
    ),
    "top_k": lambda name, value: _whole(name, value, 0, 1 << 30),
    "n": lambda name, value: _whole(name, value, 1, 128),
    "seed": lambda name, value: _whole(name, value, 0, (1 << 63) - 1),
    "top_logprobs": lambda name, value: _whole(name, value, 0, 20),
    "stop": _stop,
    "logit_bias": _bias,
    **dict.fromkeys(("logprobs", "ignore_eos", "thinking", "parallel_tool_calls"), _flag),
    "tools": _tools,
    "tool_choice": _ignored,  # it is applied once tools are known
    "response_format": _format,
    "reasoning_effort": _effort,
    "thinking_budget": lambda name, value: _whole(name, value, 0, MOST_TOKENS),
    "chat_template_kwargs": _variables,
    "stream": _stream,
    **dict.fromkeys(IGNORED, _ignored),
}
"""What makes arguments of ``Request``, and ``logprobs``, of each parameter."""
KNOWN = (*PROMPTS, *READERS)
