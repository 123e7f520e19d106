"""Answers as Anthropic's Messages write them: blocks, and the events that build them up."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gemma4_core import Part
from gemma4_core.openai import arguments
from gemma4_serve.dialects.asking import model_name
from gemma4_serve.engine.contract import Asked, Event, ModelCard, Progress
from gemma4_serve.outcome import Outcomes, consumed
from gemma4_serve.streaming import event

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_call": "tool_use"}


class MessageObject:
    """One message: its id and blocks, its events, and its object."""

    def __init__(self, asked: Asked, card: ModelCard, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self.id = f"msg_{secrets.token_hex(12)}"
        self.model = model_name(asked, card)
        self.blocks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None

    def _object(self, content: list[dict[str, Any]], ended: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
                **ended, "usage": usage}  # fmt: skip

    def _ended(self) -> dict[str, Any]:
        outcome = self.outcomes.each[0]
        reason = "stop_sequence" if outcome.stop else REASONS.get(outcome.answer.finish_reason or "stop", "end_turn")
        return {"stop_reason": reason, "stop_sequence": outcome.stop}

    def usage(self) -> dict[str, Any]:
        """Tokens in Anthropic's form: those that were cached are not among ``input_tokens``."""
        cached = self.outcomes.cached_tokens
        return {"input_tokens": self.outcomes.stream.prompt_tokens - cached, "cache_read_input_tokens": cached,
                "cache_creation_input_tokens": 0, "output_tokens": self.outcomes.completion_tokens}  # fmt: skip

    async def collect(self) -> dict[str, Any]:
        """The object, once the answer has ended. Raises ApiError where it failed."""
        await consumed(self.outcomes.stream, self._take, self._close)
        content = self.blocks or [{"type": "text", "text": ""}]
        return self._object(content, self._ended(), self.usage())

    async def events(self) -> AsyncIterator[bytes]:
        """Events of the answer on its way. Raises ApiError where it fails."""
        start = self._object([], {"stop_reason": None, "stop_sequence": None}, self.usage())
        yield _event("message_start", message=start)
        yield _event("ping")
        async for events in self.outcomes.stream.batches():
            pieces = [piece for one in events for piece in self._take(one)]
            if pieces or not events:
                yield b"".join(pieces) or _event("ping")
        if not self.blocks and self._open is None:
            yield b"".join(self._begin({"type": "text", "text": ""}))
        yield b"".join(self._close())
        yield _event("message_delta", delta=self._ended(), usage=self.usage())
        yield _event("message_stop")

    def _take(self, one: Event) -> Iterator[bytes]:
        """The events that a part brings."""
        if isinstance(one, Progress):
            return
        self.outcomes.take(one)
        if one.tool_call is not None:
            yield from self._call(one)
        elif one.text:
            kind = "thinking" if one.kind == "thinking" else "text"
            if self._open is None or self._open["type"] != kind:
                yield from self._close()
                yield from self._begin({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))
            assert self._open is not None
            self._open[kind] += one.text
            yield self._delta({"type": f"{kind}_delta", kind: one.text})

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        self._open = block
        yield _event("content_block_start", index=len(self.blocks), content_block=dict(block))

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=len(self.blocks), delta=delta)

    def _close(self) -> Iterator[bytes]:
        """End the block that is open."""
        block, self._open = self._open, None
        if block is None:
            return
        if block["type"] == "thinking":  # clients send it back; nothing is done with it
            block["signature"] = hashlib.sha256(block["thinking"].encode()).hexdigest()
            yield self._delta({"type": "signature_delta", "signature": block["signature"]})
        yield _event("content_block_stop", index=len(self.blocks))
        self.blocks.append(block)

    def _call(self, part: Part) -> Iterator[bytes]:
        """A tool call, whole at once."""
        call = part.tool_call
        assert call is not None
        yield from self._close()
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call["name"]}
        yield from self._begin({**block, "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": arguments(call)})
        assert self._open is not None
        self._open["input"] = dict(call["arguments"])
        yield from self._close()


def _event(name: str, /, **values: Any) -> bytes:
    return event({"type": name, **values}, name)
