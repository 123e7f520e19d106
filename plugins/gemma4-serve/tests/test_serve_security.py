"""Hosts, origins, keys, bodies: what is let through, and what others' advisories taught."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from gemma4_serve import Limits, Settings
from gemma4_serve.command import serve_command
from gemma4_serve.errors import without_paths
from gemma4_serve.security.hosts import host_allowed, origin_allowed
from gemma4_serve.security.keys import read_keys
from gemma4_serve.settings import digests
from serve_tools import CONTEXT, Live, demo_model

from gemma4_core import InputError

KEY = "sk-secret-and-long"
LOCAL, EVERYWHERE = Settings(), Settings(host="0.0.0.0")
ROUTES = (
    "/v1/models", "/v1/models/demo", "/metrics", "/v1/chat/completions", "/v1/chat/completions/input_tokens",
    "/nowhere",
)  # fmt: skip


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    """A server with a key, a small body limit, and a page that may ask."""
    settings = Settings(parallel=2, context=CONTEXT, keys=digests([KEY, "another-one"]), origins=("https://chat.example",),
                        limits=Limits(body_bytes=4096, body_seconds=0.5))  # fmt: skip
    with Live(demo_model(), settings) as server:
        yield server


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer wrong-key-here"}, {"Authorization": KEY}, {"Authorization": "Bearer"},
    {"Authorization": f"Basic {KEY}"}, {"x-api-key": KEY[:-1]}, {"x-api-key": "a" * 5000}, {"Cookie": f"key={KEY}"},
])
def test_no_route_answers_without_a_key(locked: Live, headers: dict[str, str]) -> None:
    """vLLM docs/usage/security.md: the key must not guard /v1 alone."""
    for path in ROUTES:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
            answer = locked.client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
    assert locked.client.get("/metrics", headers=headers).json()["error"]["type"] == "authentication_error"
    assert locked.client.get("/health", headers=headers).status_code == 200


def test_a_key_opens_every_route_in_both_forms(locked: Live) -> None:
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": "bearer another-one"}):
        assert locked.client.get("/v1/models", headers=headers).status_code == 200
    told = locked.client.post("/v1/messages", headers={"x-api-key": "wrong-key"})
    assert told.json()["type"] == "error" and told.json()["error"]["type"] == "authentication_error"


def test_a_body_is_bounded_while_it_is_read(locked: Live) -> None:
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    url, big = "/v1/chat/completions", b'{"a": "' + b"x" * 5000 + b'"}'
    assert locked.client.post(url, content=big, headers=headers).status_code == 413
    assert locked.client.post(url, content=iter([big[:3000], big[3000:]]), headers=headers).status_code == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert locked.client.post(url, content=b"{}", headers={**headers, "content-type": kind}).status_code == 415
    packed = {**headers, "content-encoding": "gzip"}  # ollama CVE-2024-12886
    assert locked.client.post(url, content=b"\x1f\x8b", headers=packed).status_code == 415
    for body in (b"{", b"[]", b'"a"', b"\xff", b'{"a": NaN}', b"[" * 2000 + b"]" * 2000, b'{"a": "\\ud800"}', b""):
        answer = locked.client.post(url, content=body, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", body


def test_headers_are_bounded_and_a_slow_body_is_given_up(locked: Live) -> None:
    """vLLM CVE-2025-48956."""
    answer = locked.client.get("/v1/models", headers={"x-api-key": KEY, "x-more": "a" * 40000})
    assert answer.status_code == 431
    with socket.create_connection(("127.0.0.1", locked.port)) as connection:
        connection.settimeout(20)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", locked.port)) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_only_pages_that_may_ask_are_answered(locked: Live) -> None:
    headers = {"x-api-key": KEY}
    for origin in ("https://evil.example", "null", "https://chat.example.evil.example", "http://localhost:3000"):
        assert locked.client.get("/v1/models", headers={**headers, "Origin": origin}).status_code == 403
        asked = locked.client.options("/v1/models", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 200 and "access-control-allow-origin" not in asked.headers
    asked = locked.client.options("/v1/models", headers={"Origin": "https://chat.example"})
    assert asked.headers["access-control-allow-origin"] == "https://chat.example"
    answer = locked.client.get("/v1/models", headers={**headers, "Origin": "https://chat.example"})
    assert answer.headers["access-control-allow-origin"] == "https://chat.example" and answer.status_code == 200
    assert "access-control-allow-credentials" not in answer.headers
    own = locked.client.get("/v1/models", headers={**headers, "Origin": locked.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize(("host", "fine"), [
    ("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:8000", True), ("127.9.9.9", True),
    ("evil.example", False), ("evil.example:8000", False), ("127.0.0.1.evil.example", False), ("localhost@evil", False),
    ("", False), (None, False), ("[::1", False), ("a b", False), ("localhost/x", False), ("localhost:x", False),
])
def test_a_rebound_name_is_not_answered(host: str | None, fine: bool) -> None:
    """ollama CVE-2024-28224."""
    assert host_allowed(host, LOCAL) is fine
    assert host_allowed(host, replace(EVERYWHERE, allowed_hosts=("api.example",))) is fine
    assert host_allowed("api.example:443", replace(LOCAL, allowed_hosts=("API.example",)))
    assert host_allowed("anything.example", EVERYWHERE)


def test_the_live_server_refuses_another_host(live: Live) -> None:
    assert live.client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert live.client.get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(("origin", "allowed", "fine"), [
    ("http://localhost:3000", ("localhost",), True), ("http://[::1]:3000", ("localhost",), True),
    ("http://127.0.0.1", ("localhost",), True), ("http://localhost.evil.com", ("localhost",), False),
    ("http://notlocalhost", ("localhost",), False), ("https://a.b", ("https://a.b",), True),
    ("https://a.b:444", ("https://a.b",), False), ("https://a.b", ("*",), True), ("null", ("localhost",), False),
    ("http://[", ("localhost",), False), ("file://", (), False), ("https://api.example", (), True),
])
def test_origins(origin: str, allowed: tuple[str, ...], fine: bool) -> None:
    assert origin_allowed(origin, "api.example", replace(LOCAL, origins=allowed)) is fine


@pytest.mark.parametrize("text", ["", "# only\n", "short\n", "has spaces in it\n", "a" * 600, "schlüssel-lang\n"])
def test_a_file_without_a_good_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InputError, match=r"--api-key-file .*keys"):
        read_keys(path)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\n  another-one\n")
    assert read_keys(path) == digests([KEY, "another-one"])
    monkeypatch.setenv("GEMMA4_API_KEY", KEY)
    assert read_keys(None) == digests([KEY])
    monkeypatch.delenv("GEMMA4_API_KEY")
    assert read_keys(None) == frozenset()
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="--api-key-file"):
            read_keys(wrong)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--host", "0.0.0.0"], "--api-key-file"), (["--host", "example.org"], "--insecure"),
    (["--tls-cert", "a.pem"], "belong together"), (["--max-body", "much"], "much"), (["--parallel", "many"], "many"),
    (["--adapter", "poet"], "poet"), (["--adapter", "a b=c"], "a b=c"), (["--port", "70000"], "70000"),
])
def test_the_command_refuses_what_is_not_safe_or_not_known(arguments: list[str], words: str) -> None:
    ran = CliRunner().invoke(serve_command, ["-m", "demo", *arguments])
    assert ran.exit_code == 2 and words in ran.stderr.splitlines()[-1] and ran.stdout == ""


def test_the_command_refuses_what_it_cannot_use_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (["--port", str(port)], f"--port {port}"), (["--host", "127.0.0.300x"], "127.0.0.300x"),
            (["--api-key-file", str(tmp_path / "absent")], "absent"), (["--port", "0", "--engine", "fleet"], "fleet"),
        ):
            insecure = ["--insecure"] if "--host" in arguments else []
            ran = CliRunner().invoke(serve_command, ["-m", "demo", *arguments, *insecure])
            assert ran.exit_code == 1 and ran.stderr.count("\n") == 1 and words in ran.stderr, ran.stderr


def test_messages_hold_no_paths() -> None:
    text = ("/root/models/e2b/chat_template.jinja line 3: the chat template refuses these messages: no /a/b/c.d; "
            "--raw does without the template")
    assert without_paths(text) == "chat_template.jinja line 3: the chat template refuses these messages: no c.d"
    assert without_paths("see config.json in /root/models/e2b)") == "see config.json in e2b)"


def test_a_fault_of_ours_says_nothing(live: Live, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """vLLM CVE-2026-22778: no text of an exception reaches a client, and no prompt the log."""
    from gemma4_serve.logs import log

    monkeypatch.setattr(log, "on", True)
    processor = demo_model().processor
    monkeypatch.setattr(processor, "tokenized", lambda *_: (_ for _ in ()).throw(ValueError("secret at 0x7f: zebra")))
    answer = live.ask("zebra")
    assert answer.status_code == 500 and "secret" not in answer.text and "zebra" not in answer.text
    logged = capsys.readouterr().err
    assert '"error": "ValueError"' in logged and "secret" not in logged and "zebra" not in logged
    assert all(json.loads(line) for line in logged.splitlines())


def test_a_websocket_and_a_range_are_not_served(live: Live) -> None:
    """starlette CVE-2025-62727."""
    assert live.client.get("/v1/models", headers={"Range": "bytes=0-0,0-0"}).status_code == 200
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "a", "Sec-WebSocket-Version": "13"}
    assert live.client.get("/v1/models", headers=upgrade).status_code in (200, 400, 403)
    assert live.client.request("TRACE", "/v1/models").status_code == 405
    assert httpx.get(f"{live.url}/v1/%2e%2e/health").status_code == 404
