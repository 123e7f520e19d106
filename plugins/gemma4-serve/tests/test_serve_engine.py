"""The engine client: room, stalls, deadlines, faults, and the way out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from gemma4_serve import ApiError, Asked, Limits, LocalEngine, Settings
from gemma4_serve.engine.stream import LocalStream
from gemma4_serve.streaming import EventStream
from serve_tools import CONTEXT, Live, demo_model, wait_until

from gemma4_core import Part, Scheduler

LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "tell a story"}], "ignore_eos": True, "temperature": 0}


@contextmanager
def held(live: Live, count: int) -> Iterator[list[Any]]:
    """So many streams that are being answered."""
    with httpx.Client(base_url=live.url, timeout=60) as client:
        streams = [client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) for _ in range(count)]
        opened = [stream.__enter__() for stream in streams]
        yield opened
        for stream in streams:
            stream.__exit__(None, None, None)


def slowly(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Steps wait until the event that is returned is set."""
    go, step = threading.Event(), Scheduler.step

    def waiting(scheduler: Scheduler) -> Any:
        go.wait(0.05)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", waiting)
    return go


def test_a_full_queue_is_told_and_a_free_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(parallel=1, context=CONTEXT, limits=Limits(queue=1))
    with Live(demo_model(), settings) as live:
        go = slowly(monkeypatch)
        with held(live, 2):
            wait_until(lambda: live.engine.stats().running == 1 and live.engine.stats().waiting == 1)
            answer = live.ask()
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "unavailable_error"
            told = live.post("/v1/messages", {"messages": LONG["messages"], "max_tokens": 2})
            assert told.status_code == 503 and told.json()["error"]["type"] == "overloaded_error"
        go.set()
        wait_until(lambda: live.free)
        assert live.ask().status_code == 200


def test_a_request_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(parallel=1, context=CONTEXT, limits=Limits(seconds=0.3))
    with Live(demo_model(), settings) as live:
        slowly(monkeypatch)
        answer = live.post("/v1/chat/completions", LONG)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "timeout"
        *_, last = live.events("/v1/chat/completions", {**LONG, "stream": True})
        assert last["error"]["code"] == "timeout"
        wait_until(lambda: live.free)


def test_a_step_that_fails_ends_what_ran_and_nothing_else(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    step, fail = Scheduler.step, threading.Event()

    def failing(scheduler: Scheduler) -> Any:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("the device is gone")
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", failing)
    fail.set()
    answer = live.ask()
    assert answer.status_code == 500 and "device" not in answer.text
    assert live.ask().status_code == 200 and live.free and live.client.get("/health").status_code == 200


def test_a_template_has_a_second(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM CVE-2025-62426: and a request brings none of its own."""
    template = demo_model().template
    assert template is not None and template.seconds == 1.0
    loops = "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2
    monkeypatch.setattr(template, "texts", {"default": loops})
    answer = live.ask()
    assert answer.status_code == 400 and "1 seconds" in answer.json()["error"]["message"]
    monkeypatch.undo()
    for more in ({"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {}}):
        assert live.ask(**more).status_code == 200
    assert live.ask(chat_template_kwargs={"chat_template": "x"}).status_code == 400
    assert live.post("/v1/responses", {"input": "a", "chat_template_kwargs": {"tools": []}}).status_code == 400


def test_salts_keep_beginnings_apart(live: Live) -> None:
    """vLLM CVE-2025-46570, CVE-2025-25183."""
    text = "the dog sees the cat and " * 8

    def cached(**more: Any) -> int:
        return live.ask(text, **more).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="one") == 0
    assert cached(cache_salt="one") > 50 and cached(cache_salt="two") == 0 and cached() == 0


def test_answers_side_by_side_are_those_alone(live: Live) -> None:
    """Thirty readers, some of whom leave; vLLM GHSA-v97p-wpxp-px84: nobody sees another's text."""
    texts = [f"add {n} and {n + 7}" for n in range(6)] + ["tell a story", "hello"]
    alone = {text: live.ask(text, max_tokens=16).json()["choices"][0]["message"]["content"] for text in texts}

    async def one(client: httpx.AsyncClient, number: int) -> None:
        text = texts[number % len(texts)]
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            got = ""
            async for line in answer.aiter_lines():
                if number % 3 == 0:
                    return
                if line.startswith("data: {"):
                    got += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert got == alone[text]

    async def run() -> None:
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
            await asyncio.gather(*(one(client, number) for number in range(30)))

    asyncio.run(run())
    wait_until(lambda: live.free)


def test_a_stream_that_nobody_reads_is_ended() -> None:
    async def run() -> None:
        stream = LocalStream(Limits(stall_seconds=0.01), 1, False, 3)
        stream.push([Part("a")])
        assert not stream.cancelled
        await asyncio.sleep(0.03)
        stream.push([Part("b")])
        assert stream.cancelled and stream.stalled
        quick = LocalStream(Limits(ping_seconds=0.01, flush_seconds=0), 1, False, 3)
        batches = quick.batches()
        assert await anext(batches) == []
        quick.push([Part("a"), Part("", finish_reason="stop")])
        assert [part.text for part in await anext(batches)] == ["a", ""]  # type: ignore[union-attr]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)

    asyncio.run(run())


def test_a_connection_that_takes_nothing_is_given_up() -> None:
    ended: list[bool] = []

    async def pieces() -> Any:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    async def send(message: Any) -> None:
        if message.get("body") == b"data: 2\n\n":
            await asyncio.sleep(60)

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def run() -> None:
        await EventStream(pieces(), 0.02, lambda: ended.append(True))({"type": "http", "path": "/"}, receive, send)

    asyncio.run(run())
    assert ended == [True]


def test_an_engine_serves_without_http() -> None:
    async def run() -> tuple[str, int]:
        engine = LocalEngine(demo_model(), Settings(parallel=1, context=64))
        stream = await engine.submit(Asked("prompt", "Once upon", {"max_new_tokens": 4}))
        text = "".join([part.text async for parts in stream.batches() for part in parts])  # type: ignore[union-attr]
        with pytest.raises(ApiError, match="tokens"):
            await engine.submit(Asked("tokens", [2] * 65))
        with pytest.raises(ApiError, match="adapter"):
            await engine.submit(Asked("tokens", [2], {"adapter": "none"}))
        await engine.close()
        with pytest.raises(ApiError, match="not ready"):
            await engine.submit(Asked("tokens", [2]))
        return text, stream.prompt_tokens

    text, tokens = asyncio.run(run())
    assert text == "".join(part.text for part in demo_model().stream_generate("Once upon", 4)) and tokens > 1


@pytest.mark.slow
def test_sigterm_lets_answers_finish() -> None:
    command = [sys.executable, "-m", "gemma4_core", "serve", "-m", "demo", "--device", "cpu", "--port", "0",
               "--parallel", "2", "--context", "256"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        told = json.loads(process.stderr.readline())
        assert told["event"] == "listening" and told["model"] == "demo" and told["key"] is False
        url = f"{told['url']}/v1/chat/completions"
        with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and "length" in rest[-2]
        assert process.wait(60) == 0
        last = process.stderr.read()
    assert '"event": "ended"' in last and "story" not in last
