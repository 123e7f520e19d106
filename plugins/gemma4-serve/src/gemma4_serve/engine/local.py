"""``LocalEngine``: the model in this process. One thread owns the device; everything else reaches it by a queue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from gemma4_core import Gemma4Error, LoadedModel, Part, Request, Running, Scheduler, SchedulerStats
from gemma4_core.openai import alone
from gemma4_serve.engine.card import model_card
from gemma4_serve.engine.contract import Asked, Event, ModelCard, Progress, Scored
from gemma4_serve.engine.preparing import Preparing
from gemma4_serve.engine.scoring import Scoring
from gemma4_serve.engine.stream import LocalStream
from gemma4_serve.errors import ApiError, broken, busy, refused, too_long, wrong
from gemma4_serve.logs import log
from gemma4_serve.settings import Settings

T = TypeVar("T")
DEADLINE = "the request's deadline has passed"
IDLE_SECONDS = 5.0
"""How long the thread sleeps at most where there is nothing to do."""


class LocalEngine:
    """Answers requests with a loaded model.

    Args:
        model: what ``load_pretrained`` returned.
        settings: slots, context and bounds.
        adapters: names for clients of the model's adapters, with the model's own names.

    Raises:
        InputError: the slots do not fit into memory.
    """

    def __init__(self, model: LoadedModel, settings: Settings, adapters: Mapping[str, str] | None = None) -> None:
        self.model, self.settings = model, settings
        self._scheduler = self._new_scheduler()
        self._card = model_card(model, settings, self._scheduler.context, adapters or {})
        self._preparing = Preparing(model, settings, self._scheduler.context)
        self._preparing.get_ready()
        self._pool = ThreadPoolExecutor(1, "gemma4-prepare")
        self._tokens = ThreadPoolExecutor(1, "gemma4-tokens")
        self._arrived: deque[Callable[[], None]] = deque()
        self._streams: dict[Running, LocalStream] = {}
        self._new: list[Running] = []
        self._progress: dict[Running, int] = {}
        """Prompts under way that somebody watches, with what was told last."""
        self._wake = threading.Condition()
        self._closing = False
        self.pending = 0
        """Requests between ``submit`` and their end; counted in the event loop."""
        self.ready = True
        self.observe: Callable[[float], None] | None = None
        """Is told the seconds between two tokens of an answer, in the device's thread."""
        self._latest: dict[tuple[Running, int], float] = {}
        self._thread = threading.Thread(target=self._run, name="gemma4-device", daemon=True)
        self._thread.start()

    @property
    def card(self) -> ModelCard:
        """See ``EngineClient``."""
        return self._card

    def stats(self) -> SchedulerStats:
        """See ``EngineClient``."""
        return self._scheduler.stats()

    def piece(self, token: int) -> str:
        """See ``EngineClient``."""
        return alone(token, self.model.tokenizer)

    # ------------------------------------------------------------------------------------------- the event loop

    async def submit(self, asked: Asked) -> LocalStream:
        """See ``EngineClient``."""
        if not self.ready or self._closing:
            raise busy("the server is not ready")
        if self.pending >= self._scheduler.parallel + self.settings.limits.queue:
            raise busy()
        self.pending += 1
        try:
            request, tokens = await self._in_pool(self._preparing.request, asked)
            stream = LocalStream(self.settings.limits, request.n, asked.one_call, tokens)
        except BaseException:
            self.pending -= 1
            raise
        self._send(lambda: self._begin(request, stream, asked.progress))
        try:
            await stream.admitted
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return stream

    async def prompt_ids(self, asked: Asked) -> list[int]:
        """See ``EngineClient``."""
        return await self._in_pool(self._preparing.ids, asked)

    async def render(self, asked: Asked) -> str:
        """See ``EngineClient``."""
        return await self._in_pool(self._preparing.rendered, asked)

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """See ``EngineClient``."""
        return await self._with_tokenizer(lambda: self.model.tokenizer.encode(text, special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See ``EngineClient``."""
        return await self._with_tokenizer(lambda: self.model.tokenizer.decode(ids))

    async def _with_tokenizer(self, run: Callable[[], Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokens, run)
        except Gemma4Error as error:
            raise refused(error) from error

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``EngineClient``. Texts run one by one between steps."""
        if self._card.adapters:
            raise wrong("embeddings are not served beside adapters")
        return [await self._on_device(partial(self._embed, text)) for text in texts]

    async def score(self, asked: Asked, top: int | None) -> Scored:
        """See ``EngineClient``. Pieces of the prompt run between steps."""
        ids = await self.prompt_ids(asked)
        text = asked.prompt if asked.kind == "prompt" else await self.detokenize(ids)
        if top is None:
            return Scored(text)
        if len(ids) > self._card.context:
            raise too_long(len(ids), self._card.context)
        scoring = Scoring(self.model, ids, top)
        while not scoring.done:
            await self._on_device(scoring.step)
        return replace(scoring.scored(), text=text)

    async def _on_device(self, run: Callable[[], T]) -> T:
        """The result of something that runs between two steps. Raises ApiError."""
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(run())
            except Gemma4Error as error:
                done.set_exception(refused(error))
            except Exception as error:
                log.failure("a request between steps", error)
                done.set_exception(broken())

        if self._closing:
            raise busy("the server is ending")
        self._send(job)
        return await asyncio.wrap_future(done)

    async def close(self) -> None:
        """See ``EngineClient``."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self._pool.shutdown(cancel_futures=True)
        self._tokens.shutdown(cancel_futures=True)

    async def _in_pool(self, run: Callable[[Asked], Any], asked: Asked) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run, asked)
        except (ApiError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.failure("preparing a prompt", error)
            raise broken() from error

    def _send(self, run: Callable[[], None]) -> None:
        """Have the device's thread do something before its next step."""
        with self._wake:
            self._arrived.append(run)
            self._wake.notify()

    def _deliver(self, batch: list[tuple[LocalStream, list[Event]]]) -> None:
        """Hand a step's events to their streams; runs in the event loop."""
        for stream, events in batch:
            errors = [event for event in events if isinstance(event, Part) and event.error is not None]
            if not stream.admitted.done():
                if errors:
                    stream.admitted.set_exception(error_of(errors[0], self.settings))
                    stream.admitted.exception()  # nobody may be waiting any more
                else:
                    stream.admitted.set_result(None)
            if events:
                stream.push(events)

    def _ended(self) -> None:
        self.pending -= 1

    # ------------------------------------------------------------------------------------------- the device's thread

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self.model, self.settings.parallel, self.settings.context, self.settings.prefix_bytes)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._arrived or self._closing or not self._scheduler.idle):
                    self._wake.wait(IDLE_SECONDS)
                jobs = [self._arrived.popleft() for _ in range(len(self._arrived))]
                if self._closing and not jobs and self._scheduler.idle:
                    break
            for job in jobs:
                job()
            for running, stream in self._streams.items():
                if stream.cancelled:
                    running.cancel()
            try:
                self._hand_out(self._scheduler.step())
            except Exception as error:
                log.failure("a step", error)
                self._restart()
        self._scheduler.close()

    def _begin(self, request: Request, stream: LocalStream, progress: bool) -> None:
        if stream.cancelled:
            stream.loop.call_soon_threadsafe(self._ended)
            return
        try:
            running = self._scheduler.submit(request)
        except Exception as error:
            log.failure("a request", error)
            self._lose(stream, request.n)
            return
        self._streams[running] = stream
        self._new.append(running)
        if progress:
            self._progress[running] = -1

    def _embed(self, text: str) -> list[float]:
        return self.model.embed(text)[0].tolist()

    def _hand_out(self, found: Sequence[tuple[Running, Part]]) -> None:
        """Send what a step made to the event loops, in one call each."""
        events: dict[Running, list[Event]] = defaultdict(list)
        for running in self._new:
            events[running] = []
        self._new.clear()
        now = time.perf_counter()
        for running, part in found:
            events[running].append(part)
            self._note(running, part, now)
        for running, told in [*self._progress.items()]:
            self._tell_progress(running, told, now, events)
        loops: dict[asyncio.AbstractEventLoop, list[tuple[LocalStream, list[Event]]]] = defaultdict(list)
        for running, made in events.items():
            stream = self._streams.get(running)
            if stream is not None:
                loops[stream.loop].append((stream, made))
                if running.done:
                    self._forget(running)
        for loop, batch in loops.items():
            self._call(loop, lambda batch=batch: self._deliver(batch))  # type: ignore[misc]

    def _note(self, running: Running, part: Part, now: float) -> None:
        """Measure the time between an answer's tokens."""
        if part.token is None or self.observe is None:
            return
        key = (running, part.choice)
        if key in self._latest:
            self.observe(now - self._latest[key])
        self._latest[key] = now

    def _tell_progress(
        self, running: Running, told: int, now: float, events: dict[Running, list[Event]]
    ) -> None:
        sequences = running.sequences
        if not sequences or sequences[0].lane is None:
            return
        first = sequences[0]
        done = first.length if first.first else first.filled
        if told < 0:
            events[running].insert(0, Progress(first.length, first.reused, first.reused, now - running.began))
        if done > max(told, first.reused):
            told_now = Progress(first.length, first.reused, done, now - running.began)
            events[running].insert(1 if told < 0 else 0, told_now)
        self._progress[running] = max(done, 0)
        if done == first.length:
            del self._progress[running]

    def _forget(self, running: Running) -> None:
        stream = self._streams.pop(running)
        self._progress.pop(running, None)
        for choice in range(len(running.answers)):
            self._latest.pop((running, choice), None)
        self._call(stream.loop, self._ended)

    def _restart(self) -> None:
        """Begin anew after a step that failed: what ran is lost, what comes is answered."""
        for running, stream in self._streams.items():
            self._lose(stream, len(running.answers))
        for held in (self._streams, self._new, self._progress, self._latest):
            held.clear()
        try:
            self._scheduler.close()
            self._scheduler = self._new_scheduler()
        except Exception as error:
            log.failure("starting again", error)
            self.ready = False
            self._closing = True

    def _lose(self, stream: LocalStream, answers: int) -> None:
        """End a stream by a fault of ours."""
        last: list[Event] = [Part("", finish_reason="cancelled", error="", fault=True, choice=choice)
                             for choice in range(answers)]  # fmt: skip
        self._call(stream.loop, lambda: self._deliver([(stream, last)]))
        self._call(stream.loop, self._ended)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, run: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # that loop has ended, and with it everybody who listened
            loop.call_soon_threadsafe(run)


def error_of(part: Part, settings: Settings) -> ApiError:
    """The error that a last part tells of."""
    if part.error == DEADLINE:
        return ApiError(503, f"the request took longer than {settings.limits.seconds:g} seconds", "timeout")
    return broken() if part.fault else refused(part.error or "")
