"""A server on a port of its own, in threads of this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from gemma4_serve import LocalEngine, Page, Settings, create_app

from gemma4_core import LoadedModel, Request, load_pretrained

CONTEXT = 256


@cache
def demo_model() -> LoadedModel:
    """The packaged demo model in fp32, shared by all tests of a process."""
    return load_pretrained("demo", device="cpu", dtype="float32", max_context=CONTEXT)


class Live:
    """A running server.

    Args:
        model: what it serves.
        settings: how; four slots of ``CONTEXT`` positions where nothing else is said.
        adapters: names of adapters with the model's own.
        pages: static pages.
    """

    def __init__(
        self, model: LoadedModel, settings: Settings | None = None, adapters: Mapping[str, str] | None = None,
        pages: Sequence[Page] = (),
    ) -> None:
        self.settings = settings or Settings(parallel=4, context=CONTEXT)
        self.engine = LocalEngine(model, self.settings, adapters)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            create_app(self.engine, self.settings, pages), http="h11", ws="none", lifespan="on", log_config=None,
            access_log=False, timeout_graceful_shutdown=10,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[self._socket])), daemon=True
        )
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Live:
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Send a body as JSON."""
        return self.client.post(path, json=body, headers=headers)

    def ask(self, text: str = "add 2 and 3", path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        """A chat completion, greedy and short unless said otherwise."""
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **more}
        return self.post(path, asked)

    def events(self, path: str, body: Any) -> list[Any]:
        """The data of a stream's events; ``[DONE]`` as text."""
        with self.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        found = [line.removeprefix("data: ") for line in lines]
        return [json.loads(one) if one != "[DONE]" else one for one in found]

    @property
    def free(self) -> bool:
        """Whether nothing runs and no slot is in use."""
        stats = self.engine.stats()
        return stats.running == stats.waiting == stats.slots_used == self.engine.pending == 0


def wait_until(there: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds. Raises AssertionError where it does not in time."""
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends, "it did not come in time"
        time.sleep(0.005)


@contextmanager
def script(monkeypatch: pytest.MonkeyPatch, *texts: str) -> Iterator[None]:
    """While it holds, answers of the demo model are these texts by turns, each with its end: a constraint leaves
    nothing else."""
    model, turns = demo_model(), cycle(texts)

    def request(**options: Any) -> Request:
        ids = [*model.tokenizer.encode(next(turns)), model.stop_ids[0]]
        return Request(**{**options, "constraint": Script(ids, model.config.text_config.vocab_size)})

    monkeypatch.setattr("gemma4_serve.engine.preparing.Request", request)
    monkeypatch.setattr("gemma4_serve.engine.preparing.Preparing._check_form", lambda *_: None)
    yield
    monkeypatch.undo()


class Script:
    """A constraint that allows one id at a time."""

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        self.ids, self.words, self.at = ids, -(-vocabulary // 32), 0

    def mask(self) -> np.ndarray:
        mask = np.zeros(self.words, np.uint32)
        token = self.ids[min(self.at, len(self.ids) - 1)]
        mask[token // 32] = np.uint32(1) << np.uint32(token % 32)
        return mask

    def advance(self, token: int) -> None:
        self.at += 1

    def rollback(self, tokens: int) -> None:
        self.at -= tokens

    def forced(self) -> Sequence[int]:
        return []
