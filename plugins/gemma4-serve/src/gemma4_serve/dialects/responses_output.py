"""Answers as OpenAI's Responses write them: items, and the events that build them up."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from gemma4_core import Part
from gemma4_core.openai import arguments
from gemma4_serve.dialects.asking import model_name
from gemma4_serve.dialects.chat import call_id, progress_object
from gemma4_serve.dialects.responses_input import INPUT, ResponseForm
from gemma4_serve.engine.contract import Asked, Event, ModelCard, Progress
from gemma4_serve.errors import ApiError
from gemma4_serve.outcome import Outcomes, consumed
from gemma4_serve.streaming import event

TEXT_PARTS = {"text": ("message", "msg", "output_text"), "thinking": ("reasoning", "rs", "reasoning_text")}
"""By kind of part: the item's type, the beginning of its id, and the type of its content."""


@dataclass
class Item:
    """An item of the output while it grows."""

    kind: str
    """``text`` or ``thinking``."""
    index: int
    id: str
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def part(self, with_logprobs: bool) -> dict[str, Any]:
        """Its content."""
        named: dict[str, Any] = {"type": TEXT_PARTS[self.kind][2], "text": self.text}
        if self.kind == "text":
            named |= {"annotations": []}
            named |= {"logprobs": list(self.logprobs)} if with_logprobs else {}
        return named

    def whole(self, status: str, with_logprobs: bool) -> dict[str, Any]:
        """The item as it is now."""
        content = [self.part(with_logprobs)] if self.text or status == "completed" else []
        more: dict[str, Any] = {"role": "assistant"} if self.kind == "text" else {"summary": []}
        return {"id": self.id, "type": TEXT_PARTS[self.kind][0], "status": status, "content": content, **more}


class ResponseObject:
    """One response: its id and items, its events, and its object."""

    def __init__(self, asked: Asked, form: ResponseForm, card: ModelCard, outcomes: Outcomes) -> None:
        self.form, self.outcomes = form, outcomes
        self.id = f"resp_{secrets.token_hex(24)}"
        self.model, self.created = model_name(asked, card), int(time.time())
        self.output: list[dict[str, Any]] = []
        self._open: Item | None = None
        self._count = 0
        """Events sent."""

    def whole(self, status: str | None = None, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The object as it is now; without a status that of finished answers."""
        cut = self.outcomes.each[0].answer.finish_reason == "length"
        status = status or ("incomplete" if cut else "completed")
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model, "output": list(self.output), **self.form.echo,
            "usage": self.usage() if status in ("completed", "incomplete") else None,
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        """Tokens in the form of Responses."""
        prompt, made = self.outcomes.stream.prompt_tokens, self.outcomes.completion_tokens
        return {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": self.outcomes.cached_tokens},
            "output_tokens": made, "output_tokens_details": {"reasoning_tokens": self.outcomes.reasoning_tokens},
            "total_tokens": prompt + made,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- whole

    async def collect(self) -> dict[str, Any]:
        """The object, once the answer has ended. Raises ApiError where it failed."""
        await consumed(self.outcomes.stream, self._take, self._close)
        found = self.whole()
        return found | ({"timings": self.outcomes.timings()} if self.form.timings else {})

    # ------------------------------------------------------------------------------------------- events

    async def events(self) -> AsyncIterator[bytes]:
        """Events of the answer on its way; one that fails ends with ``response.failed``."""
        yield self._event("response.created", response=self.whole("in_progress"))
        yield self._event("response.in_progress", response=self.whole("in_progress"))
        try:
            async for events in self.outcomes.stream.batches():
                pieces = [piece for one in events for piece in self._take(one)]
                if not events:  # clients count events, not comments
                    pieces = [self._event("response.in_progress", response=self.whole("in_progress"))]
                if pieces:
                    yield b"".join(pieces)
        except ApiError as error:
            told = {"code": error.code or "server_error", "message": error.message}
            yield self._event("response.failed", response=self.whole("failed", told))
            return
        yield b"".join(self._close())
        found = self.whole()
        more = {"timings": self.outcomes.timings()} if self.form.timings else {}
        yield self._event(f"response.{found['status']}", response=found, **more)

    def _event(self, name: str, /, **values: Any) -> bytes:
        number, self._count = self._count, self._count + 1
        return event({"type": name, "sequence_number": number, **values}, name)

    def _take(self, one: Event) -> Iterator[bytes]:
        """The events that a part brings."""
        if isinstance(one, Progress):
            told = progress_object(one)
            yield self._event("response.in_progress", response=self.whole("in_progress"), prompt_progress=told)
            return
        brought = self.outcomes.take(one)
        if one.tool_call is not None:
            yield from self._close()
            yield from self._call(one)
        elif one.text or brought:
            yield from self._text(one, brought)

    def _text(self, part: Part, brought: list[dict[str, Any]]) -> Iterator[bytes]:
        if self._open is None or self._open.kind != part.kind:
            yield from self._close()
            _, start, _ = TEXT_PARTS[part.kind]
            self._open = item = Item(part.kind, len(self.output), f"{start}_{secrets.token_hex(24)}")
            yield self._event("response.output_item.added", output_index=item.index,
                              item=item.whole("in_progress", False))
            yield self._event("response.content_part.added", **self._place(item), part=item.part(False))
        item = self._open
        item.text += part.text
        item.logprobs += brought
        more: dict[str, Any] = {"logprobs": brought if self.form.logprobs else []} if item.kind == "text" else {}
        more |= {"timings": self.outcomes.timings()} if self.form.timings else {}
        yield self._event(f"response.{TEXT_PARTS[item.kind][2]}.delta", **self._place(item), delta=part.text, **more)

    @staticmethod
    def _place(item: Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _close(self) -> Iterator[bytes]:
        """End the item that is open."""
        item, self._open = self._open, None
        if item is None:
            return
        place, told = self._place(item), self.form.logprobs
        more: dict[str, Any] = {"logprobs": item.logprobs if told else []} if item.kind == "text" else {}
        yield self._event(f"response.{TEXT_PARTS[item.kind][2]}.done", **place, text=item.text, **more)
        yield self._event("response.content_part.done", **place, part=item.part(told))
        self.output.append(item.whole("completed", told))
        yield self._event("response.output_item.done", output_index=item.index, item=self.output[-1])

    def _call(self, part: Part) -> Iterator[bytes]:
        """A tool call, whole at once."""
        call = part.tool_call
        assert call is not None
        custom = call["name"] in self.form.custom
        kind, start = ("custom_tool_call", "ctc") if custom else ("function_call", "fc")
        id, index = f"{start}_{secrets.token_hex(24)}", len(self.output)
        key = "input" if custom else "arguments"
        text = str(call["arguments"].get(INPUT, "")) if custom else arguments(call)
        item = {"id": id, "type": kind, "status": "in_progress", "call_id": call_id(), "name": call["name"], key: ""}
        yield self._event("response.output_item.added", output_index=index, item=item)
        stem = f"response.{'custom_tool_call_input' if custom else 'function_call_arguments'}"
        yield self._event(f"{stem}.delta", item_id=id, output_index=index, delta=text)
        named = {} if custom else {"name": call["name"]}
        yield self._event(f"{stem}.done", item_id=id, output_index=index, **{key: text}, **named)
        self.output.append({**item, "status": "completed", key: text})
        yield self._event("response.output_item.done", output_index=index, item=self.output[-1])
