"""``LocalStream``: what crosses from the thread of the device to the event loop, once per step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from gemma4_core import Part
from gemma4_serve.engine.contract import Event
from gemma4_serve.settings import Limits

LONGEST_BUFFER = 1 << 16
"""Events that may wait for a reader. An answer is bounded by its context, so that this is met by nobody who reads."""


class LocalStream:
    """Answers on their way. ``push`` is called in the event loop; ``cancelled`` is read by the thread of the device."""

    def __init__(self, limits: Limits, answers: int, one_call: bool, prompt_tokens: int) -> None:
        self.limits, self.one_call, self.prompt_tokens = limits, one_call, prompt_tokens
        self.loop = asyncio.get_running_loop()
        self.admitted: asyncio.Future[None] = self.loop.create_future()
        self.cancelled = False
        self.stalled = False
        """Whether it was cancelled because nobody read it."""
        self._left = answers
        self._called: set[int] = set()
        """Answers that hold the one tool call that they may."""
        self._buffer: list[Event] = []
        self._ready = asyncio.Event()
        self._unread_since = 0.0
        self._answers = answers

    def push(self, events: Iterable[Event]) -> None:
        """Take in what a step has made."""
        now = time.monotonic()
        if not self._buffer:
            self._unread_since = now
        for event in events:
            self._push(event)
        unread = now - self._unread_since > self.limits.stall_seconds
        if (unread or len(self._buffer) > LONGEST_BUFFER) and not self.cancelled:
            self.stalled = True
            self.cancel()
        self._ready.set()

    def _push(self, event: Event) -> None:
        if isinstance(event, Part):
            self._left -= event.finish_reason is not None
            if event.choice in self._called:
                if event.finish_reason is None:
                    return
                event = replace(event, finish_reason="tool_call", error=None)
            elif self.one_call and event.tool_call is not None:
                self._called.add(event.choice)
                self.cancelled |= len(self._called) == self._answers
        self._buffer.append(event)

    async def batches(self) -> AsyncIterator[list[Event]]:
        """See ``Stream``."""
        last = 0.0
        while True:
            try:
                await asyncio.wait_for(self._ready.wait(), self.limits.ping_seconds)
            except TimeoutError:
                yield []
                continue
            pause = last + self.limits.flush_seconds - time.monotonic()
            if pause > 0 and self._left:
                await asyncio.sleep(pause)
            last = time.monotonic()
            events, self._buffer = self._buffer, []
            self._ready.clear()
            left = self._left
            yield events
            if not left:
                return

    def cancel(self) -> None:
        """End the answers within a step."""
        self.cancelled = True
