"""Media of a request: bytes that it carries, or that an allowed host gives. No client's string becomes a path."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

from gemma4_serve.errors import ApiError, wrong
from gemma4_serve.security.fetching import fetch
from gemma4_serve.settings import Settings


class MediaReader:
    """Reads the media of one request, and counts them."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.count = settings, 0

    async def read(self, part: Mapping[str, Any], kind: str, param: str) -> bytes:
        """The bytes of a content part of OpenAI's or Anthropic's form. Raises ApiError."""
        self.count += 1
        if self.count > self.settings.limits.media:
            raise wrong(f"a request holds at most {self.settings.limits.media} media", param)
        return await self._read(self._value(part, kind, param), param)

    def _value(self, part: Mapping[str, Any], kind: str, param: str) -> str:
        """The URL or base64 text in a part: ``image_url`` as text or object, ``input_audio.data``, ``source``, …"""
        for key in (f"{kind}_url", f"input_{kind}", "source", kind, "url", "data"):
            value = part.get(key)
            if isinstance(value, Mapping):
                value = value.get("url") or value.get("data")
            if isinstance(value, str) and value:
                return value
        raise wrong(f"{param}: a part of type {part.get('type')} needs a data: URL or base64 data", param)

    async def _read(self, text: str, param: str) -> bytes:
        limits = self.settings.limits
        if text[:5].lower() == "data:":
            head, comma, body = text.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise wrong(f"{param}: a data: URL must be data:<type>;base64,<content>", param)
            return decoded(body, param, limits.media_bytes)
        if text[:8].lower().startswith(("http://", "https://")):
            if not self.settings.media_hosts:
                raise wrong(f"{param}: this server fetches no URLs; send the medium as a data: URL", param)
            try:
                return await asyncio.to_thread(fetch, text, self.settings.media_hosts, limits.media_bytes)
            except ApiError as error:
                raise wrong(f"{param}: {error.message}", param) from error
        return decoded(text, param, limits.media_bytes)


def decoded(text: str, param: str, most: int) -> bytes:
    """Bytes of base64 text. Raises ApiError."""
    if len(text) // 4 * 3 > most + 3:
        raise ApiError(413, f"{param}: a medium has at most {most >> 20} MiB", None, param)
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        said = f"{param}: neither a data: URL nor valid base64; files and other URLs are not read"
        raise wrong(said, param) from None
    if not found:
        raise wrong(f"{param}: the medium is empty", param)
    return found
