"""Media: what a request carries, what may be fetched, and what must not be; adapters as models."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gemma4_serve import ApiError, Settings
from gemma4_serve.dialects.sound import LONGEST_PIECE, Recording, cut, read_recording
from gemma4_serve.security import fetching
from gemma4_serve.security.fetching import fetch, is_public
from openai import OpenAI
from serve_tools import CONTEXT, Live, demo_model

from gemma4_plugins.commands.demo import draw_picture, record_sound


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    draw_picture(folder / "picture.png", np.random.default_rng(1))
    record_sound(folder / "sound.wav", np.random.default_rng(1))
    return folder


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def said(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Describe it."}]}]


def test_a_picture_is_seen_in_every_interface(live: Live, files: Path) -> None:
    url = data_url(files / "picture.png", "image/png")
    alone = "".join(part.text for part in demo_model().stream_generate(
        said({"type": "image", "path": str(files / "picture.png")}), 8, literal=True))  # fmt: skip
    same: dict[str, Any] = {"temperature": 0}
    chat = live.post("/v1/chat/completions", {**same, "max_tokens": 8, "messages": said(
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}})}).json()  # fmt: skip
    assert chat["choices"][0]["message"]["content"] == alone
    respond = live.post("/v1/responses", {**same, "max_output_tokens": 8, "input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": url}, {"type": "input_text", "text": "Describe it."}]}]}).json()
    assert respond["output"][0]["content"][0]["text"] == alone
    message = live.post("/v1/messages", {**same, "max_tokens": 8, "messages": said(
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}}
    )}).json()  # fmt: skip
    assert message["content"][0]["text"] == alone


def test_a_sound_is_heard_and_written_down(live: Live, files: Path) -> None:
    sound = base64.b64encode((files / "sound.wav").read_bytes()).decode()
    heard = live.post("/v1/chat/completions", {"max_tokens": 4, "temperature": 0, "messages": said(
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}})})  # fmt: skip
    assert heard.status_code == 200, heard.text
    client = OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0)
    with open(files / "sound.wav", "rb") as file:
        whole = client.audio.transcriptions.create(model="demo", file=file)
    with open(files / "sound.wav", "rb") as file:
        events = list(client.audio.transcriptions.create(model="demo", file=file, stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == whole.text
    assert "".join(event.delta for event in events[:-1]).strip() == whole.text  # type: ignore[union-attr]
    for form in ("text", "verbose_json"):
        with open(files / "sound.wav", "rb") as file:
            answer = live.client.post("/v1/audio/transcriptions", files={"file": file}, data={
                "response_format": form, "language": "en", "prompt": "numbers", "temperature": "0"})  # fmt: skip
        assert answer.status_code == 200, answer.text
    assert answer.json()["segments"][0]["start"] == 0


def test_what_is_no_recording_is_told(live: Live) -> None:
    url = "/v1/audio/transcriptions"
    for sent, words in (
        ({"files": {"file": b"not a sound"}}, "not a sound file"), ({"files": {"other": b"a"}}, "file"),
        ({"files": {"file": b"a"}, "data": {"response_format": "srt"}}, "response_format"),
        ({"files": {"file": b"a"}, "data": {"language": "../x"}}, "language"),
        ({"files": {"file": b"a"}, "data": {str(i): "a" for i in range(20)}}, "multipart"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}}, "multipart"),
    ):
        answer = live.client.post(url, **sent)  # type: ignore[arg-type]
        assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert live.client.post(url, json={}).status_code == 415


def test_long_recordings_are_cut_where_it_is_quiet() -> None:
    rng = np.random.default_rng(0)
    rate = 8000
    samples = rng.normal(0, 0.3, 70 * rate).astype(np.float32)
    for at in (20.5, 44.0):
        samples[int(at * rate) : int((at + 0.3) * rate)] = 0
    pieces = cut(Recording(samples, rate))
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), samples)
    assert all(piece.seconds <= LONGEST_PIECE for piece in pieces)
    assert 20.5 <= pieces[0].seconds <= 20.8 and 44.0 <= pieces[0].seconds + pieces[1].seconds <= 44.3
    file = io.BytesIO()
    soundfile.write(file, np.zeros((100, 2), np.float32), 48000, format="FLAC")
    found = read_recording(file.getvalue())
    assert found.samples.shape == (100,) and found.rate == 48000
    huge = io.BytesIO()
    soundfile.write(huge, np.zeros(31 * 60 * 1000, np.float32), 1000, format="WAV", subtype="PCM_U8")
    with pytest.raises(ApiError, match="30 minutes"):
        read_recording(huge.getvalue())


@pytest.mark.parametrize("url", [
    "/etc/hostname", "file:///etc/hostname", "-", "http://127.0.0.1/a.png", "https://example.org/a.png", "", "ftp://a/b",
    "data:image/png,abc", "data:image/png;base64,", "data:image/png;base64,@@@@", "data:,", "C:\\a.png", "../a.png",
    "data:image/png;base64,bm90IGEgcGljdHVyZQ==", "gopher://a", "//etc/hostname", "~/a.png", "\\\\host\\a",
])
def test_no_string_of_a_client_is_a_path_or_an_address(live: Live, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own files and standard input stay its own, whatever the key under which a string comes."""
    def never(*_: Any) -> Any:
        raise AssertionError("a client's string was resolved")

    monkeypatch.setattr("gemma4_core.processing.sources._from_text", never)
    for part in (
                 {"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url},
                 {"type": "image", "path": url, "image": url}, {"type": "input_image", "image_url": url},
                 {"type": "image", "source": {"type": "url", "url": url}}, {"type": "input_audio", "data": url}):
        answer = live.post("/v1/chat/completions", {"messages": said(part), "max_tokens": 2})
        assert answer.status_code == 400 and "hostname" not in answer.text, (part, answer.text)
    for path, body in (("/v1/completions", {"prompt": "<|image|>"}), ("/tokenize", {"messages": said(part)})):
        assert live.post(path, body).status_code == 400


def test_too_many_media_and_a_bomb_are_refused(live: Live, files: Path) -> None:
    """vLLM CVE-2026-5497: pixels are counted before they are decoded."""
    part = {"type": "image_url", "image_url": {"url": data_url(files / "picture.png", "image/png")}}
    answer = live.post("/v1/chat/completions", {"messages": said(*[part] * 17), "max_tokens": 2})
    assert answer.status_code == 400 and "at most 16 media" in answer.json()["error"]["message"]
    bomb = bytearray((files / "picture.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 60000, 60000)  # the sides that the header tells
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    url = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    answer = live.post("/v1/chat/completions", {"messages": said({"type": "image_url", "image_url": url})})
    assert answer.status_code == 400 and "0x" not in answer.text and "60000" in answer.text


@pytest.mark.parametrize(("address", "public"), [
    ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False), ("169.254.169.254", False),
    ("192.168.1.1", False), ("0.0.0.0", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
    ("fc00::1", False),
    ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ("224.0.0.1", False), ("100.64.0.1", False), ("nonsense", False),
])  # fmt: skip
def test_only_public_addresses_are_fetched_from(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A host that redirects, or sends more than is read; its address counts as public."""
    seen: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                target = connection.recv(4096).decode().split(" ")[1]
                seen.append(target)
                body = b"x" * (9000 if target == "/large" else 100)
                head = b"302 Found\r\nLocation: http://127.0.0.1/" if target == "/moved" else b"200 OK"
                connection.sendall(b"HTTP/1.1 " + head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    threading.Thread(target=serve, daemon=True).start()
    port = server.getsockname()[1]
    real = socket.create_connection
    monkeypatch.setattr(fetching.socket, "create_connection", lambda address, *more: real(("127.0.0.1", port), *more))
    answers = {"good.example": ["93.184.216.34"], "inside.example": ["93.184.216.34", "10.0.0.1"]}
    look_up = socket.getaddrinfo

    def found(name: str, *more: Any, **named: Any) -> Any:
        known = [(0, 0, 0, "", (address, 80)) for address in answers.get(name, ())]
        return known or look_up(name, *more, **named)

    monkeypatch.setattr(fetching.socket, "getaddrinfo", found)
    yield seen
    server.close()


def test_media_come_from_allowed_hosts_alone(site: list[str]) -> None:
    """vLLM CVE-2026-24779, CVE-2026-25960, CVE-2026-34753."""
    hosts = {"good.example", "inside.example"}
    assert fetch("http://good.example/a.png?b=c", hosts, 4096) == b"x" * 100 and site == ["/a.png?b=c"]
    assert fetch("http://GOOD.example:80/a", hosts, 4096)
    for url, words in (
        ("http://good.example/moved", "302"), ("http://good.example/large", "larger"),
        ("http://a@good.example/", "host"),
        ("http://good.example@evil.example/", "host"), ("http://evil.example/", "host"),
        ("http://inside.example/", "public"),
        ("http://good.example\\@evil.example/", "read"), ("http://good.example:x/", "read"), ("http://[::1]/", "host"),
        ("http://good.example /", "host"), ("http://good.example./", "host"), ("ftp://good.example/", "host"),
        ("http://" + "a" * 5000, "read"), ("http://göod.example/", "read"),
    ):  # fmt: skip
        with pytest.raises(ApiError, match=words):
            fetch(url, hosts, 4096)


def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    from gemma4_lora import Adapters, fresh_adapter, save_adapter
    from gemma4_lora.names import adaptable

    from gemma4_core import load_pretrained

    model = load_pretrained("demo", device="cpu", dtype="float32", max_context=CONTEXT, modalities=("text",))
    shapes = {name: shape for name, shape in adaptable(model.config).items() if name in model.places}
    made = fresh_adapter(shapes, model.config.text_prefix, rank=2, targets=["q_proj"])
    for pair in made.pairs.values():
        pair.b[:] = np.random.default_rng(0).normal(0, 0.5, pair.b.shape)
    save_adapter(tmp_path / "poet", made)
    Adapters.of(model).load("loaded-as", tmp_path / "poet")
    with Live(model, Settings(parallel=2, context=CONTEXT, alias="base"), {"poet": "loaded-as"}) as live:
        assert [one["id"] for one in live.client.get("/v1/models").json()["data"]] == ["base", "base:poet"]
        names = ("base", "base:poet", "poet")
        answers = {name: live.ask("tell a story", max_tokens=12, model=name).json() for name in names}
        assert answers["poet"]["model"] == answers["base:poet"]["model"] == "base:poet"
        texts = {name: body["choices"][0]["message"]["content"] for name, body in answers.items()}
        assert texts["poet"] == texts["base:poet"] != texts["base"]
        missing = live.ask(model="base:other")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        assert live.post("/v1/embeddings", {"input": "a"}).status_code == 400
