"""Load on a server with OpenAI's interface: so many streams at once, each asking again as soon as it has its answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_plugins.commands.bench.http_stream import Address, HttpStream, get_json

WORDS = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with", "his",
    "they", "at", "be", "this", "have", "from", "or", "one", "had", "by", "word", "but", "not", "what", "all", "were",
    "we", "when", "your", "can", "said", "there", "use", "an", "each", "which", "she", "do", "how", "their", "if",
    "will", "up", "other", "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make",
    "like", "him", "into", "time", "has", "look", "two", "more", "write", "go", "see", "number", "no", "way", "could",
    "people", "my", "than", "first", "water", "been", "call", "who", "oil", "its", "now", "find", "long", "down",
    "day", "did", "get", "come", "made", "may",
]
"""Common words, about a token each."""


@dataclass(frozen=True)
class HttpWork:
    """What is asked."""

    address: Address
    model: str
    key: str | None
    words: int
    """Of a prompt, besides those that all prompts share."""
    tokens: int
    """Of an answer."""
    shared: int = 0
    seed: int = 0
    timeout: float = 600.0


@dataclass
class HttpResult:
    """What was measured at one number of streams."""

    streams: int
    requests: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    """Seconds from a request to its first text."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two pieces of a text."""
    longest: list[float] = field(default_factory=list)
    """The longest gap of each answer."""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: int = 0
    reason: str | None = None
    """Why the first failed request failed."""


def prompts(work: HttpWork) -> Iterator[str]:
    """Different prompts without end, the same for the same seed."""
    draw = random.Random(work.seed)
    beginning = " ".join(draw.choices(WORDS, k=work.shared))
    while True:
        yield f"{beginning} {' '.join(draw.choices(WORDS, k=work.words))}".strip()


async def served_model(address: Address, key: str | None) -> str:
    """The name of the first model that a server lists. Raises InputError."""
    try:
        return str((await get_json(address, key, "/models"))["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as fault:
        raise InputError(f"--url {address.url}: /models lists no model; name one with --model") from fault


def measure(work: HttpWork, levels: list[int], requests: int | None, tell: Callable[[str], Any]) -> list[HttpResult]:
    """Measure each number of streams in turn. Without ``requests`` each level has two for each stream, four at least.

    Raises InputError where the server cannot be reached or refuses the very first request.
    """
    return asyncio.run(_measure(work, levels, requests, tell))


async def _measure(
    work: HttpWork, levels: list[int], requests: int | None, tell: Callable[[str], Any]
) -> list[HttpResult]:
    coming, found = prompts(work), []
    await _ask(work, next(coming), HttpResult(1))  # what it compiles now, nobody waits for later
    for streams in levels:
        result = HttpResult(streams)
        count = requests or max(2 * streams, 4)
        left = iter([next(coming) for _ in range(count)])
        began = time.perf_counter()

        await asyncio.gather(*(_stream(work, left, count, result, tell) for _ in range(streams)))
        result.seconds = time.perf_counter() - began
        found.append(result)
    return found


async def _stream(
    work: HttpWork, left: Iterator[str], count: int, result: HttpResult, tell: Callable[[str], Any]
) -> None:
    """One stream: it takes a prompt as soon as it has its answer to the one before."""
    for prompt in left:
        try:
            await asyncio.wait_for(_ask(work, prompt, result), work.timeout)
        except (InputError, OSError, TimeoutError, ValueError, EOFError) as fault:
            result.failed += 1
            result.reason = result.reason or str(fault) or type(fault).__name__
        tell(f"{result.streams} streams: {result.requests} of {count} requests, {result.failed} failed")


async def _ask(work: HttpWork, prompt: str, result: HttpResult) -> None:
    """One request, whose waits are noted."""
    body = {"model": work.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": work.tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
            "ignore_eos": True}  # known to us and to vLLM; others leave it out  # fmt: skip
    began = time.perf_counter()
    latest, pieces, longest, usage = 0.0, 0, 0.0, None
    async with HttpStream(work.address, work.key) as stream:
        await stream.send("POST", "/chat/completions", body)
        async for event in stream.events():
            if "error" in event:
                raise InputError(shown(json.dumps(event["error"]), 200))
            usage = event.get("usage") or usage
            if not any(_text(choice.get("delta") or {}) for choice in event.get("choices") or ()):
                continue
            now = time.perf_counter()
            if latest:
                result.gaps.append(now - latest)
                longest = max(longest, now - latest)
            else:
                result.first.append(now - began)
            latest, pieces = now, pieces + 1
    if longest:
        result.longest.append(longest)
    told = usage or {}
    result.requests += 1
    result.tokens += told.get("completion_tokens") or pieces
    result.prompt_tokens += told.get("prompt_tokens") or 0
    result.cached_tokens += (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _text(delta: dict[str, Any]) -> bool:
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
                or delta.get("tool_calls"))
