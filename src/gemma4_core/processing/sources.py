"""Where media come from: files, bytes, file objects, data URIs, standard input, and URLs where they are allowed."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gemma4_core.errors import InputError
from gemma4_core.processing.media_cache import digest

MAX_STREAM_BYTES = 512 << 20
"""Bytes taken from a URL, a pipe or standard input."""
STDIN = "- (standard input)"
URL_TIMEOUT_SECONDS = 30
SHOWN_CHARACTERS = 160


def shown(name: str) -> str:
    """A name short enough for a one-line message, cut in the middle."""
    flat = name if name.isprintable() else name.encode("unicode_escape", "surrogateescape").decode()
    half = SHOWN_CHARACTERS // 2
    return flat if len(flat) <= SHOWN_CHARACTERS else f"{flat[:half]}…{flat[-half:]}"


@dataclass(frozen=True)
class MediaSource:
    """A medium that has not been read yet: a file of this machine, or bytes in memory."""

    name: str
    """What the user typed, for messages."""
    path: Path | None = None
    data: bytes | None = None

    def __str__(self) -> str:
        return shown(self.name)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.path is not None and self.path.is_dir()

    def open(self) -> BinaryIO:
        """The medium as a seekable binary file. Raises InputError where it is missing, empty, or no file."""
        if self.data is not None:
            if not self.data:
                raise InputError(f"{self}: is empty (0 bytes)")
            return io.BytesIO(self.data)
        assert self.path is not None
        try:
            status = os.stat(self.path)
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"{self}: is a folder; give a file")
            if stat.S_ISFIFO(status.st_mode):
                with open(self.path, "rb") as pipe:
                    return MediaSource(self.name, data=read_stream(pipe, str(self))).open()
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{self}: is not a regular file")
            if not status.st_size:
                raise InputError(f"{self}: is empty (0 bytes)")
            return open(self.path, "rb")
        except FileNotFoundError:
            raise InputError(f"{self}: no such file; check the path") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self}: cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def fingerprint(self) -> tuple[Any, ...] | None:
        """A key that stays equal while the content does, or None where that cannot be told."""
        if self.data is not None:
            return ("data", digest(self.data))
        assert self.path is not None
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return ("file", os.path.realpath(self.path), status.st_size, status.st_mtime_ns)


def read_stream(stream: Any, name: str) -> bytes:
    """All bytes of a stream, at most ``MAX_STREAM_BYTES``."""
    try:
        data = stream.read(MAX_STREAM_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from None
    if not isinstance(data, bytes | bytearray):
        raise InputError(f"{name}: is a text stream; open it in binary mode")
    if len(data) > MAX_STREAM_BYTES:
        raise InputError(f"{name}: is larger than {MAX_STREAM_BYTES >> 20} MiB; save it to a file first")
    return bytes(data)


_stdin: tuple[Any, bytes] | None = None


def _standard_input() -> bytes:
    """All of standard input. It can be read only once, so it is held for whoever asks again in this process."""
    global _stdin
    if _stdin is None or _stdin[0] is not sys.stdin:
        _stdin = (sys.stdin, read_stream(getattr(sys.stdin, "buffer", sys.stdin), STDIN))
    return _stdin[1]


def fetch(url: str) -> bytes:
    """The content behind an http or https URL. Raises InputError naming the URL."""
    request = urllib.request.Request(url, headers={"User-Agent": "gemma4"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as answer:
            return read_stream(answer, shown(url))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(f"{shown(url)}: cannot be fetched: {getattr(error, 'reason', None) or error}") from None


def _data_uri(text: str) -> MediaSource:
    head, comma, body = text.partition(",")
    name = shown(head + comma + body[:16])
    try:
        if not comma:
            raise ValueError("no comma")
        encoded = head.endswith(";base64")
        data = base64.b64decode(body, validate=True) if encoded else urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        raise InputError(f"{name}: is not a valid data URI (data:<type>;base64,<content>)") from None
    return MediaSource(name, data=data)


def _from_text(text: str, allow_urls: bool) -> MediaSource:
    scheme = text.split(":", 1)[0].lower() if ":" in text else ""
    if text == "-":
        return MediaSource(STDIN, data=_standard_input())
    if scheme == "data":
        return _data_uri(text)
    if scheme in ("http", "https") and text[len(scheme) :].startswith("://"):
        if not allow_urls:
            raise InputError(f"{shown(text)}: URLs are fetched only with --allow-urls (allow_urls=True)")
        return MediaSource(text, data=fetch(text))
    if scheme == "file" and text[4:].startswith("://"):
        return MediaSource(text, path=Path(urllib.request.url2pathname(urllib.parse.urlparse(text).path)))
    if not text:
        raise InputError("a media path is empty; give a file")
    return MediaSource(text, path=Path(text))


def resolve(value: Any, allow_urls: bool = False) -> Any:
    """``MediaSource`` for a path, bytes, file object, data URI, URL or ``-``; arrays and library objects unchanged.

    Raises InputError for a URL without ``allow_urls`` and for a stream that cannot be read.
    """
    if isinstance(value, str):
        return _from_text(value, allow_urls)
    if isinstance(value, os.PathLike):
        return MediaSource(os.fspath(value), path=Path(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return MediaSource(f"{len(value)} bytes in memory", data=bytes(value))
    if callable(getattr(value, "read", None)) and not hasattr(value, "__array_interface__"):
        name = getattr(value, "name", None)
        name = name if isinstance(name, str) else "file object"
        return MediaSource(name, data=read_stream(value, shown(name)))
    return value
