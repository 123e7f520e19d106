"""Mutated requests on every route of ``gemma4 serve``: does it live, and does nobody else notice?

    python benchmarks/robustness/serve_fuzz.py --cases 100000 --seed 1

The server runs in a process of its own with the demo model in fp32. Requests of all interfaces are mutated: values,
bytes, paths, methods, headers; some are cut off. An answer is fine with any status but 5xx, 503 excepted. Now and then
a sane request is asked, whose answer must stay what it was. The last line is JSON; the exit code is 1 where something
was found. Needs the package gemma4-serve and httpx.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.values import mutate_json
from serving import Served

SAID = [{"role": "user", "content": "add 2 and 3"}]
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
PIXEL = "data:image/png;base64," + base64.b64encode(bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63fccff0bf1e000505020017c8f1d2"
    "0000000049454e44ae426082")).decode()  # fmt: skip
PARTS = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}},
                                      {"type": "text", "text": "a"}]}]  # fmt: skip
SEEDS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"messages": SAID, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 1, "n": 2,
                              "stop": ["a"], "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2, "user": "u"}),
    ("/v1/chat/completions", {"messages": [*SAID, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{\"city\": \"a\"}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "b"}], "tools": [TOOL], "tool_choice": "auto",
        "max_tokens": 3}),
    ("/v1/chat/completions", {"messages": PARTS, "max_tokens": 2, "stream": True, "stream_options": {
        "include_usage": True}, "reasoning_effort": "low", "thinking_budget": 3, "return_progress": True}),
    ("/v1/chat/completions", {"messages": SAID, "response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "schema": {"type": "object"}}}, "max_tokens": 3, "cache_salt": "s", "chat_template_kwargs": {}}),
    ("/v1/completions", {"prompt": ["Once", [2, 5]], "max_tokens": 3, "echo": True, "logprobs": 1, "n": 1}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                                 {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                                 {"type": "function_call_output", "call_id": "c", "output": "b"}],
                       "instructions": "i", "tools": [{"type": "function", "name": "look", "parameters": {}}],
                       "max_output_tokens": 3, "text": {"format": {"type": "text"}}, "reasoning": {"effort": "none"},
                       "include": [], "stream": True}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {
        "role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]}, {
        "role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "b"}]}], "max_tokens": 3,
        "system": "s", "tools": [{"name": "look", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 9}, "stop_sequences": ["x"], "stream": True}),
    ("/v1/messages/count_tokens", {"messages": SAID}), ("/v1/embeddings", {"input": ["a", "b"], "dimensions": None}),
    ("/tokenize", {"content": "a b", "with_pieces": True}), ("/detokenize", {"tokens": [5, 6]}),
    ("/apply-template", {"messages": SAID, "tools": [TOOL]}), ("/completion", {"prompt": "a", "n_predict": 2}),
    ("/v1/audio/transcriptions", None),
]  # fmt: skip
WORDS = ("/etc/hostname", "file:///etc/passwd", "http://127.0.0.1/", "data:,", "-", "<|image|>", "<turn|>", "\ud83d",
         "9" * 40)  # fmt: skip
LONGEST = 600.0
"""Seconds of a request; more is a finding."""
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW")
KINDS = ("application/json", "text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "")


def mutated(rng: random.Random) -> dict[str, Any]:
    """Arguments of ``httpx``'s request."""
    path, body = rng.choice(SEEDS)
    headers = {"content-type": "application/json"}
    if body is None:
        content = b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nRIFF\r\n--x--\r\n"
        headers["content-type"] = "multipart/form-data; boundary=x"
        data = bytearray(content)
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        content = bytes(data)
    else:
        content = json.dumps(body).encode()
        for _ in range(rng.randint(1, 3)):
            content = mutate_json(rng, content, WORDS)
    if rng.random() < 0.05:
        cut = rng.randrange(len(content) + 1)
        content = content[:cut] + bytes(rng.randrange(256) for _ in range(rng.randint(0, 6)))
    if rng.random() < 0.05:
        headers["content-type"] = rng.choice(KINDS)
    if rng.random() < 0.05:
        headers[rng.choice(("origin", "host", "authorization", "x-api-key", "content-encoding", "range"))] = rng.choice(
            ("http://evil.example", "gzip", "Bearer a", "bytes=0-1,2-3", "null", "localhost", "a" * 9000))  # fmt: skip
    method = "POST" if rng.random() < 0.95 else rng.choice(METHODS)
    if rng.random() < 0.05:
        paths = (f"{path}/", path[:-1], f"/v1{path}", "/v1/models/" + "a" * 3000, "/%2e%2e/a", "//", "/metrics")
        path = rng.choice(paths)
    return {"method": method, "url": path, "content": content, "headers": headers}


class Attack:
    """Requests of one run, and what came of them."""

    def __init__(self, served: Served, cases: int, seed: int, readers: int) -> None:
        self.served, self.cases, self.readers, self.rng = served, cases, readers, random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.findings: list[str] = []
        self.asked = self.sane = self.differ = 0
        self.expected = ""

    async def run(self) -> None:
        """All of them."""
        limits = httpx.Limits(max_connections=self.readers + 4)
        async with httpx.AsyncClient(base_url=self.served.url, timeout=LONGEST, limits=limits) as client:
            self.expected = await self._sane(client)
            await asyncio.gather(*(self._reader(client) for _ in range(self.readers)))
            self.differ += await self._sane(client) != self.expected

    async def _sane(self, client: httpx.AsyncClient) -> str:
        self.sane += 1
        body = {"messages": [{"role": "user", "content": "tell a story"}], "max_tokens": 12, "temperature": 0}
        try:
            while (answer := await client.post("/v1/chat/completions", json=body)).status_code == 503:
                await asyncio.sleep(0.2)
        except httpx.HTTPError as fault:
            return type(fault).__name__
        return str(answer.json()["choices"][0]["message"]) if answer.status_code == 200 else answer.text

    async def _reader(self, client: httpx.AsyncClient) -> None:
        while self.asked < self.cases:
            self.asked += 1
            if self.asked % 250 == 0:
                self.differ += await self._sane(client) != self.expected
            case = mutated(self.rng)
            leaves = 0.02 if self.rng.random() < 0.02 else None
            try:
                answer = await asyncio.wait_for(client.request(**case), leaves or LONGEST)
            except (TimeoutError, httpx.HTTPError) as fault:
                if leaves is None and not isinstance(fault, httpx.LocalProtocolError | httpx.InvalidURL):
                    self._found(f"{type(fault).__name__}", case)
                continue
            except (httpx.InvalidURL, UnicodeError):
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                self._found(f"{answer.status_code}: {answer.text[:200]}", case)

    def _found(self, what: str, case: dict[str, Any]) -> None:
        self.findings.append(f"{what} :: {case['method']} {case['url'][:60]} {case['content'][:400]!r}")


@click.command("serve-fuzz")
@click.option("--cases", type=click.IntRange(1), default=10_000, show_default=True, help="How many requests.")
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same requests.")
@click.option("--readers", type=click.IntRange(1), default=16, show_default=True, help="Requests at once.")
def serve_fuzz_command(cases: int, seed: int, readers: int) -> None:
    """Feed mutated requests to a server."""
    served = Served("--parallel", "4", "--context", "256", "--timeout", "60", "--queue", "64")
    attack = Attack(served, cases, seed, readers)
    began = time.perf_counter()
    before = served.memory()
    try:
        asyncio.run(attack.run())
        alive = served.process.poll() is None and httpx.get(f"{served.url}/health").status_code == 200
        after = served.memory()
    finally:
        code = served.end()
    seconds = time.perf_counter() - began
    for finding in attack.findings[:20]:
        click.echo(finding.encode("ascii", "backslashreplace").decode(), err=True)
    for failure in served.failures[:20]:
        click.echo(json.dumps(failure), err=True)
    click.echo(json.dumps({
        "cases": attack.asked, "statuses": dict(sorted(attack.statuses.items())), "findings": len(attack.findings),
        "failures_logged": len(served.failures), "sane_requests": attack.sane,
        "sane_answers_that_differ": attack.differ, "alive": alive, "exit_code": code,
        "memory_growth_mb": (after - before) >> 20, "seconds": round(seconds, 1),
    }))  # fmt: skip
    if attack.findings or served.failures or attack.differ or not alive or code:
        sys.exit(1)


if __name__ == "__main__":
    serve_fuzz_command()
