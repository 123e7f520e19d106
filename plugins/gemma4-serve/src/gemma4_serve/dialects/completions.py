"""OpenAI's completions of raw text, and llama.cpp's own form of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma4_core import Part
from gemma4_serve.dialects.asking import asked_of, flag, model_name
from gemma4_serve.engine.contract import Asked, ModelCard, Scored
from gemma4_serve.errors import wrong
from gemma4_serve.merging import merged
from gemma4_serve.outcome import Outcome, Outcomes
from gemma4_serve.settings import Settings
from gemma4_serve.streaming import DONE, PING, event

USUAL_TOKENS = 16
"""Length of an answer where nothing is said, as OpenAI has it."""
MOST_LOGPROBS = 20
EVERY_KIND = ("text", "thinking", "tool_call")
REFUSED = ("suffix", "grammar", "json_schema")


@dataclass(frozen=True)
class CompletionForm:
    """How answers are wanted."""

    stream: bool
    include_usage: bool
    logprobs: int | None
    echo: bool
    nothing_new: bool
    """Whether only the prompt is to be scored."""


def completion_requests(
    body: Mapping[str, Any], card: ModelCard, settings: Settings
) -> tuple[list[Asked], CompletionForm]:
    """What a body asks for, a request for each prompt. Raises ApiError."""
    for name in REFUSED:
        if body.get(name) is not None:
            raise wrong(f"{name} is not served", name)
    prompts = prompts_of(body.get("prompt"), settings)
    n, best = body.get("n") or 1, body.get("best_of")
    if best is not None and best != n:
        raise wrong("best_of other than n is not served", "best_of")
    if isinstance(n, int) and n * len(prompts) > settings.limits.prompts:
        raise wrong(f"a request has at most {settings.limits.prompts} answers in all", "n")
    logprobs = body.get("logprobs")
    if logprobs is not None and (type(logprobs) is not int or not 0 <= logprobs <= MOST_LOGPROBS):
        raise wrong("logprobs must be a whole number from 0 to 20", "logprobs")
    asked_for = body.get("max_tokens", body.get("max_completion_tokens"))
    nothing_new = asked_for == 0 and flag(body, "echo")
    given = {name: value for name, value in body.items() if name not in ("logprobs", "messages")}
    given["max_tokens"] = USUAL_TOKENS if asked_for is None else 1 if nothing_new else asked_for
    given.pop("max_completion_tokens", None)
    if logprobs:
        given["top_logprobs"] = logprobs
    asked = []
    for prompt in prompts:
        one, _ = asked_of(given, {"text": prompt if isinstance(prompt, str) else "ids"}, card, settings)
        asked.append(one if isinstance(prompt, str) else Asked("tokens", prompt, one.options))
    options = body.get("stream_options")
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return asked, CompletionForm(flag(body, "stream"), usage, logprobs, flag(body, "echo"), nothing_new)


def prompts_of(given: Any, settings: Settings) -> list[str | list[int]]:
    """Prompts as a list: a text, ids, or a list of either. Raises ApiError."""
    if isinstance(given, str) or is_ids(given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise wrong("prompt must be a text, token ids, or a list of either", "prompt")
    if len(given) > settings.limits.prompts:
        raise wrong(f"prompt: at most {settings.limits.prompts} prompts", "prompt")
    for prompt in given:
        if not (isinstance(prompt, str) and prompt) and not is_ids(prompt):
            raise wrong("prompt must be a text that is not empty, token ids, or a list of either", "prompt")
    return given


def is_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers, at least one."""
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 1 << 31 for one in value)


class TextCompletion:
    """One completion object over the answers to one or several prompts."""

    def __init__(
        self, form: CompletionForm, card: ModelCard, asked: Sequence[Asked], outcomes: Sequence[Outcomes],
        prompts: Sequence[Scored],
    ) -> None:
        self.form, self.card, self.outcomes, self.prompts = form, card, outcomes, prompts
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.model, self.created = model_name(asked[0], card), int(time.time())

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
                "system_fingerprint": self.card.fingerprint}  # fmt: skip

    async def finished(self) -> dict[str, Any]:
        """The object, once all answers have ended. Raises ApiError where one failed."""
        await asyncio.gather(*(each.whole() for each in self.outcomes))
        return self.whole()

    def whole(self) -> dict[str, Any]:
        """The object of finished answers."""
        choices = [self._choice(number, outcome) for number, each in enumerate(self.outcomes) for outcome in each.each]
        return {**self._head(), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and answers."""
        found = [each.usage() for each in self.outcomes]
        made = 0 if self.form.nothing_new else sum(one["completion_tokens"] for one in found)
        prompt = sum(one["prompt_tokens"] for one in found)
        cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in found)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
                "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip

    def _choice(self, number: int, outcome: Outcome) -> dict[str, Any]:
        scored = self.prompts[number] if self.form.echo else Scored()
        told = [] if self.form.nothing_new else outcome.logprobs
        text = scored.text + ("" if self.form.nothing_new else outcome.text)
        index = number * self.outcomes[number].count + outcome.choice
        logprobs = None if self.form.logprobs is None else logprobs_object(scored, told)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": ended(outcome)}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Events of answers on their way. Raises ApiError where one fails."""
        if self.form.echo:
            for number, each in enumerate(self.outcomes):
                for choice in range(each.count):
                    yield self._chunk(number, choice, self.prompts[number].text, None)
        async for number, events in merged([each.stream for each in self.outcomes]):
            outcomes, pieces = self.outcomes[number], []
            for one in events:
                told = outcomes.take(one)
                if not isinstance(one, Part):
                    continue
                if one.text:
                    pieces.append(self._chunk(number, one.choice, one.text, told))
                if one.finish_reason is not None:
                    pieces.append(self._chunk(number, one.choice, "", None, ended(outcomes.each[one.choice])))
            if pieces or not events:
                yield b"".join(pieces) or PING
        if self.form.include_usage:
            yield event({**self._head(), "choices": [], "usage": self.usage()})
        yield DONE

    def _chunk(self, number: int, choice: int, text: str, told: Any, finish: str | None = None) -> bytes:
        index = number * self.outcomes[number].count + choice
        logprobs = None if self.form.logprobs is None or told is None else logprobs_object(Scored(), told)
        one = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head(), "choices": [one]})


def ended(outcome: Outcome) -> str:
    """Why an answer ended; a raw text knows no tools."""
    reason = outcome.answer.finish_reason or "stop"
    return "length" if reason == "length" else "stop"


def logprobs_object(prompt: Scored, told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Log-probabilities in the form of completions: lists over the tokens of prompt and answer."""
    tokens = [*prompt.tokens, *(one["token"] for one in told)]
    likeliest: list[Any] = list(prompt.top)
    likeliest += [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in told]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {"tokens": tokens, "token_logprobs": [*prompt.logprobs, *(one["logprob"] for one in told)],
            "top_logprobs": likeliest, "text_offset": offsets}  # fmt: skip


def llama_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body of llama.cpp's ``/completion`` under OpenAI's names."""
    renamed = {"n_predict": "max_tokens", "repeat_penalty": "repetition_penalty", "n_probs": "logprobs"}
    found = {renamed.get(name, name): value for name, value in body.items()}
    if found.get("max_tokens") in (-1, None):
        found["max_tokens"] = 1 << 20
    return found


def llama_object(outcomes: Outcomes, card: ModelCard, text: str, done: bool) -> dict[str, Any]:
    """An answer, or a piece of one, as llama.cpp's server writes it (tools/server/README.md)."""
    [outcome] = outcomes.each
    found = {
        "index": 0, "content": text, "stop": done, "model": card.name,
        "tokens_predicted": len(outcome.answer.tokens), "tokens_evaluated": outcomes.stream.prompt_tokens,
    }  # fmt: skip
    if done:
        kind = "limit" if ended(outcome) == "length" else "word" if outcome.stop else "eos"
        found |= {"stop_type": kind, "stopping_word": outcome.stop or "", "tokens_cached": outcomes.cached_tokens,
                  "timings": outcomes.timings()}  # fmt: skip
    return found
