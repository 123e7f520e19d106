"""OpenAI's chat completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gemma4_core import Part
from gemma4_core.openai import arguments, choice, reason
from gemma4_serve.dialects.asking import asked_of, flag, model_name
from gemma4_serve.dialects.conversation import clean_messages
from gemma4_serve.engine.contract import Asked, Event, ModelCard, Progress
from gemma4_serve.errors import wrong
from gemma4_serve.outcome import Outcomes
from gemma4_serve.settings import Settings
from gemma4_serve.streaming import DONE, PING, event

REFUSED = ("audio", "web_search_options", "functions", "function_call", "grammar")
"""Parameters that would change the answer and are not served."""


@dataclass(frozen=True)
class ChatForm:
    """How the answer is wanted."""

    stream: bool
    include_usage: bool
    logprobs: bool
    timings: bool
    progress: bool


async def chat_request(body: Mapping[str, Any], card: ModelCard, settings: Settings) -> tuple[Asked, ChatForm]:
    """What a body asks for. Raises ApiError."""
    for name in REFUSED:
        if body.get(name) is not None:
            raise wrong(f"{name} is not served", name)
    outputs = body.get("modalities")
    if outputs not in (None, ["text"]):
        raise wrong("modalities: this server answers with text alone", "modalities")
    if flag(body, "add_generation_prompt") and flag(body, "continue_final_message"):
        raise wrong("add_generation_prompt and continue_final_message exclude each other", "continue_final_message")
    messages = await clean_messages(body.get("messages"), settings, card.modalities)
    asked, values = asked_of(body, {"messages": messages}, card, settings)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise wrong("stream_options must be an object", "stream_options")
    form = ChatForm(
        flag(body, "stream"), bool((options or {}).get("include_usage")),
        bool(values.get("logprobs", "top_logprobs" in values)), flag(body, "timings_per_token"),
        flag(body, "return_progress"),
    )
    return replace(asked, progress=form.progress), form


class Completion:
    """One chat completion: its id, name and time, and its objects."""

    def __init__(self, asked: Asked, form: ChatForm, card: ModelCard, outcomes: Outcomes) -> None:
        self.form, self.card, self.outcomes = form, card, outcomes
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.model, self.created = model_name(asked, card), int(time.time())
        self._calls: dict[int, int] = {}
        """Tool calls told of, by answer."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": self.card.fingerprint}  # fmt: skip

    async def finished(self) -> dict[str, Any]:
        """The object, once all answers have ended. Raises ApiError where one failed."""
        await self.outcomes.whole()
        return self.whole()

    def whole(self) -> dict[str, Any]:
        """The object of finished answers."""
        choices = [
            choice(outcome.answer, lambda number: call_id(), outcome.logprobs if self.form.logprobs else None)
            for outcome in self.outcomes.each
        ]
        found = {**self._head("chat.completion"), "choices": choices, "usage": self.outcomes.usage()}
        return found | ({"timings": self.outcomes.timings()} if self.form.timings else {})

    async def chunks(self) -> AsyncIterator[bytes]:
        """Events of answers on their way. Raises ApiError where one fails."""
        for outcome in self.outcomes.each:
            yield self._chunk(outcome.choice, {"role": "assistant", "content": None})
        async for events in self.outcomes.stream.batches():
            pieces = list(self._pieces(events))
            if pieces or not events:
                yield b"".join(pieces) or PING
        if self.form.include_usage or self.form.timings:
            last = {**self._head("chat.completion.chunk"), "choices": [], "usage": self.outcomes.usage()}
            yield event(last | ({"timings": self.outcomes.timings()} if self.form.timings else {}))
        yield DONE

    def _pieces(self, events: list[Event]) -> list[bytes]:
        """The chunks of one batch; neighbouring pieces of one text are one chunk."""
        found: list[bytes] = []
        delta: dict[str, Any] = {}
        told: list[dict[str, Any]] = []
        number = 0

        def flush() -> None:
            if delta:
                found.append(self._chunk(number, dict(delta), {"content": list(told)} if self.form.logprobs else None))
                delta.clear()
                told.clear()

        for one in events:
            if isinstance(one, Progress):
                flush()
                found.append(self._progress(one))
                continue
            brought = self.outcomes.take(one)
            key = "reasoning_content" if one.kind == "thinking" else "content"
            if one.tool_call is None and (one.text or brought):
                if one.choice != number or (delta and key not in delta):
                    flush()
                number = one.choice
                delta[key] = delta.get(key, "") + one.text
                told += brought
            elif one.tool_call is not None:
                flush()
                found += self._call(one)
            if one.finish_reason is not None:
                flush()
                found.append(self._chunk(one.choice, {}, finish=reason(self.outcomes.each[one.choice].answer)))
        flush()
        return found

    def _call(self, part: Part) -> list[bytes]:
        """A tool call: first its name, then its arguments."""
        assert part.tool_call is not None
        index = self._calls.get(part.choice, 0)
        self._calls[part.choice] = index + 1
        named = {"name": part.tool_call["name"], "arguments": ""}
        first = {"index": index, "id": call_id(), "type": "function", "function": named}
        rest = {"index": index, "function": {"arguments": arguments(part.tool_call)}}
        told: dict[str, Any] | None = {"content": []} if self.form.logprobs else None
        return [self._chunk(part.choice, {"tool_calls": [one]}, told) for one in (first, rest)]

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> bytes:
        one = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        found = {**self._head("chat.completion.chunk"), "choices": [one]}
        return event(found | ({"usage": None} if self.form.include_usage else {}))

    def _progress(self, progress: Progress) -> bytes:
        one = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        told = progress_object(progress)
        return event({**self._head("chat.completion.chunk"), "choices": [one], "prompt_progress": told})


def progress_object(progress: Progress) -> dict[str, Any]:
    """How far a prompt has come, as llama.cpp's server tells it."""
    return {"total": progress.total, "cache": progress.cached, "processed": progress.done,
            "time_ms": round(progress.seconds * 1e3, 3)}  # fmt: skip


def call_id() -> str:
    """A tool call's id."""
    return f"call_{secrets.token_hex(12)}"
