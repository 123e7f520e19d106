"""A small HTTP client: one request, its answer read as server-sent events. Nothing but the standard library."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown

LINE_LIMIT = 1 << 20
SHOWN_BODY = 200


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    url: str
    """As it was given, without a slash at its end."""
    host: str
    port: int
    path: str
    secure: bool

    @staticmethod
    def of(url: str) -> Address:
        """An address from a URL. Raises InputError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as fault:
            raise InputError(f"--url {shown(url)}: {fault}") from fault
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--url {shown(url)}: must begin with http:// or https://, as http://127.0.0.1:8000/v1")
        secure = parts.scheme == "https"
        return Address(url.rstrip("/"), parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"), secure)


class HttpStream:
    """One exchange over a connection of its own."""

    def __init__(self, address: Address, key: str | None) -> None:
        self.address, self.key = address, key

    async def __aenter__(self) -> HttpStream:
        secure = ssl.create_default_context() if self.address.secure else None
        try:
            self.reader, self.writer = await asyncio.open_connection(
                self.address.host, self.address.port, ssl=secure, limit=LINE_LIMIT
            )
        except OSError as fault:
            raise InputError(f"--url {self.address.url}: {fault.strerror or fault}; is the server running?") from fault
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Send a request and read the head of its answer. Raises InputError for a status other than 200."""
        data = b"" if body is None else json.dumps(body).encode()
        head = [f"{method} {self.address.path}{path} HTTP/1.1", f"Host: {self.address.host}:{self.address.port}",
                "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close"]
        head += [f"Authorization: Bearer {self.key}"] if self.key else []
        self.writer.write("\r\n".join([*head, "", ""]).encode() + data)
        await self.writer.drain()
        status = (await self._line()).split(" ", 2)
        headers = {}
        while line := await self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        self.chunked = headers.get("transfer-encoding") == "chunked"
        if len(status) < 2 or status[1] != "200":
            said = b"".join([piece async for piece in self.pieces()]).decode(errors="replace")
            raise InputError(f"--url {self.address.url}: {method} {path} is answered with {' '.join(status[1:])}: "
                             f"{shown(said, SHOWN_BODY)}")

    async def _line(self) -> str:
        return (await self.reader.readline()).decode("latin-1").rstrip("\r\n")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if not self.chunked:
            while piece := await self.reader.read(1 << 16):
                yield piece
            return
        while size := int((await self._line()).partition(";")[0] or "0", 16):
            yield await self.reader.readexactly(size)
            await self._line()

    async def events(self) -> AsyncIterator[Any]:
        """The data of server-sent events, read as JSON; comments and ``[DONE]`` are left out."""
        held = b""
        async for piece in self.pieces():
            held += piece
            *lines, held = held.split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    yield json.loads(data)


async def get_json(address: Address, key: str | None, path: str) -> Any:
    """The JSON behind a path. Raises InputError."""
    async with HttpStream(address, key) as stream:
        await stream.send("GET", path)
        return json.loads(b"".join([piece async for piece in stream.pieces()]))
