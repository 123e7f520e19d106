"""Streams for minutes, of which many are left in the middle: is memory flat, every slot free, every answer as alone?

    python benchmarks/robustness/serve_soak.py --minutes 10 --streams 64

The server runs in a process of its own with the demo model in fp32. Each of so many readers asks one of a hundred
different requests, streamed or not, and leaves at a random moment now and then; every whole answer is compared with the
one that came when nobody else asked. The last line is JSON; the exit code is 1 where an answer differed, a request
failed, a slot was lost, or memory grew after the first third. Needs the package gemma4-serve and httpx.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parent))

from serving import Served

GROWTH = 96 << 20
"""Bytes that the process may grow by after the first third: allocators are not exact."""


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """So many different bodies."""
    rng = random.Random(seed)
    words = ("the", "cat", "dog", "sees", "a", "ball", "and", "sun", "is", "big", "red", "small", "house", "tree", "in")
    made = []
    for number in range(count):
        text = " ".join(rng.choices(words, k=rng.randint(1, 60)))
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "seed": number,
                                "max_tokens": rng.randint(1, 40), "temperature": 0}  # fmt: skip
        if number % 3 == 0:
            body |= {"temperature": 1.0, "top_k": rng.randint(2, 40)}
        if number % 5 == 0:
            body |= {"presence_penalty": 0.5, "ignore_eos": True}
        made.append(body)
    return made


class Soak:
    """Readers of one run."""

    def __init__(self, served: Served, streams: int, minutes: float, seed: int) -> None:
        self.served, self.streams, self.rng = served, streams, random.Random(seed)
        self.bodies, self.alone = requests(100, seed), [""] * 100
        self.ends = time.monotonic() + 60 * minutes
        self.whole = self.left = self.tokens = 0
        self.wrong: list[str] = []
        self.sizes: list[int] = []

    async def run(self) -> None:
        """Ask alone, then all at once until the time is over."""
        limits = httpx.Limits(max_connections=self.streams + 2)
        async with httpx.AsyncClient(base_url=self.served.url, timeout=300, limits=limits) as client:
            for number, body in enumerate(self.bodies):
                self.alone[number] = await self._ask(client, body, False, None) or ""
            watching = asyncio.ensure_future(self._watch())
            await asyncio.gather(*(self._reader(client) for _ in range(self.streams)))
            watching.cancel()
            self.sizes.append(self.served.memory())

    async def _watch(self) -> None:
        while True:
            self.sizes.append(self.served.memory())
            await asyncio.sleep(2)

    async def _reader(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.ends:
            number = self.rng.randrange(len(self.bodies))
            leaves = self.rng.uniform(0, 1.0) if self.rng.random() < 0.3 else None
            try:
                text = await self._ask(client, self.bodies[number], self.rng.random() < 0.7, leaves)
            except httpx.HTTPError as fault:
                self.wrong.append(f"request {number}: {type(fault).__name__}")
                continue
            if text is None:
                self.left += 1
                continue
            self.whole += 1
            if text != self.alone[number]:
                self.wrong.append(f"request {number}: {text[:80]!r} instead of {self.alone[number][:80]!r}")

    async def _ask(
        self, client: httpx.AsyncClient, body: dict[str, Any], stream: bool, leaves: float | None
    ) -> str | None:
        """The answer's text, None where the reader left before it was whole."""
        try:
            return await asyncio.wait_for(self._text(client, body, stream), leaves)
        except TimeoutError:
            return None

    async def _text(self, client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> str:
        path, text = "/v1/chat/completions", ""
        if not stream:
            answer = await client.post(path, json=body)
            return str(answer.json()["choices"][0]["message"]["content"]) if answer.status_code == 200 else answer.text
        async with client.stream("POST", path, json={**body, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    text += event["choices"][0]["delta"].get("content") or "" if "choices" in event else line
        return text


async def slots_in_use(url: str) -> float:
    """The part of the slots in use, once there was time to end everything."""
    used = 1.0
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(100):
            text = (await client.get("/metrics")).text
            used = sum(float(line.split()[1]) for line in text.splitlines()
                       if line.startswith(("gemma4:kv_cache_usage_perc ", "gemma4:num_requests_")))  # fmt: skip
            if not used:
                break
            await asyncio.sleep(0.1)
    return used


@click.command("serve-soak")
@click.option("--minutes", type=float, default=10.0, show_default=True)
@click.option("--streams", type=click.IntRange(1), default=64, show_default=True, help="Readers at once.")
@click.option("--seed", type=int, default=1, show_default=True)
def serve_soak_command(minutes: float, streams: int, seed: int) -> None:
    """Load a server with readers of whom many leave."""
    served = Served("--parallel", "16", "--context", "256", "--queue", "256")
    soak = Soak(served, streams, minutes, seed)
    try:
        asyncio.run(soak.run())
        used = asyncio.run(slots_in_use(served.url))
    finally:
        code = served.end()
    growth = soak.sizes[-1] - soak.sizes[len(soak.sizes) // 3]
    for line in soak.wrong[:10]:
        click.echo(line.encode("ascii", "backslashreplace").decode(), err=True)
    for failure in served.failures[:10]:
        click.echo(json.dumps(failure), err=True)
    click.echo(json.dumps({
        "minutes": minutes, "streams": streams, "whole": soak.whole, "left": soak.left, "wrong": len(soak.wrong),
        "failures_logged": len(served.failures), "slots_in_use": used, "memory_mb": [size >> 20 for size in soak.sizes[
            :: max(len(soak.sizes) // 10, 1)]], "growth_mb": growth >> 20, "exit_code": code,
    }))  # fmt: skip
    if soak.wrong or served.failures or used or code or growth > GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    serve_soak_command()
