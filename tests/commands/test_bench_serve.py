"""``gemma4 bench serve`` against a server of ten lines. No times are asserted."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_tools import failure, gemma4, usage

SEEN: list[dict[str, Any]] = []


class Answers(BaseHTTPRequestHandler):
    """Streams as many pieces as tokens are asked for; refuses prompts after the first where the path says so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "theirs"}]}' if self.path == "/v1/models" else b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        SEEN.append({**body, "key": self.headers["Authorization"]})
        if self.path.startswith("/full") and len(SEEN) > 1:
            self._send(503, b'{"error": {"message": "no room"}}')
            return
        pieces = [{"choices": [{"delta": {"role": "assistant", "content": None}}]}]
        pieces += [{"choices": [{"delta": {"content": "a"}}]}] * body["max_tokens"]
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens": 7,
                 "prompt_tokens_details": {"cached_tokens": 2}}  # fmt: skip
        pieces += [{"choices": [], "usage": usage}]  # type: ignore[list-item]
        data = b": ping\n\n" + b"".join(b"data: %s\n\n" % json.dumps(piece).encode() for piece in pieces)
        data += b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(data), 50):  # events are cut anywhere
            piece = data[at : at + 50]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setenv("GEMMA4_API_KEY", "a-key")


def test_json(url: str) -> None:
    asked = ("-s", "1", "3", "-p", 5, "-n", 4, "--shared-prefix", 2, "--json")
    ran = gemma4("bench", "serve", "--url", f"{url}/v1", *asked)
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert report["model"] == "theirs" and [row["streams"] for row in report["results"]] == [1, 3]
    one, three = report["results"]
    assert (one["requests"], one["generated_tokens"], one["prompt_tokens"], one["cached_tokens"]) == (4, 16, 28, 8)
    assert (three["requests"], three["failed"]) == (6, 0)
    for row in report["results"]:
        assert 0 < row["first_token_p50"] <= row["first_token_p99"] and row["tokens_per_second"] > 0
        assert 0 <= row["gap_p50"] <= row["gap_p99"] <= row["longest_gap_p99"]
    assert len(SEEN) == 11 and {len(seen["messages"][0]["content"].split()) for seen in SEEN} == {7}
    assert len({tuple(seen["messages"][0]["content"].split()[:2]) for seen in SEEN}) == 1
    assert len({seen["messages"][0]["content"] for seen in SEEN}) == 11
    assert {seen["key"] for seen in SEEN} == {"Bearer a-key"}


def test_tables_and_a_plot(url: str, tmp_path: Path) -> None:
    asked = ("bench", "serve", "--url", f"{url}/v1/", "--model", "mine", "-s", 2, "-n", 2, "--requests", 3)
    ran = gemma4(*asked, "--plot", tmp_path / "load.svg")
    assert ran.code == 0 and ran.out.splitlines()[2].startswith("|") and SEEN[0]["model"] == "mine"
    assert (tmp_path / "load.svg").read_text().lstrip().startswith("<?xml")
    [row] = csv.DictReader(io.StringIO(gemma4(*asked, "-o", "csv").out))
    assert (row["streams"], row["requests"], row["model"]) == ("2", "3", "mine")


def test_requests_that_fail_are_counted_and_told(url: str) -> None:
    ran = gemma4("bench", "serve", "--url", f"{url}/full", "--model", "a", "-s", 2, "--json")
    [row] = json.loads(ran.out)["results"]
    assert (ran.code, row["requests"], row["failed"], row["first_token_p50"]) == (1, 0, 4, None)
    assert ran.err.count("\n") == 1 and "--streams 2: 4 requests failed" in ran.err and "no room" in ran.err


def test_what_cannot_be_measured_is_told_in_a_line(url: str, tmp_path: Path) -> None:
    assert "is the server running?" in failure("bench", "serve", "--url", "http://127.0.0.1:1/v1")
    assert "must begin with http" in failure("bench", "serve", "--url", "ftp://a")
    assert "name one with --model" in failure("bench", "serve", "--url", f"{url}/other")
    assert "must end in .png" in failure("bench", "serve", "--url", url, "--plot", tmp_path / "a.txt")
    assert "'0' is not in the range" in usage("bench", "serve", "-s", "0")
