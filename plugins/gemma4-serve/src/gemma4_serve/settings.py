"""What a server is told when it starts, and the bounds that it holds requests to."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request may ask for, checked before it costs anything."""

    body_bytes: int = 32 << 20
    header_bytes: int = 32 << 10
    body_seconds: float = 60.0
    """Between two pieces of a body."""
    messages: int = 4096
    answers: int = 16
    """``n`` and ``best_of``."""
    prompts: int = 64
    """Prompts of one completion, texts of one embedding."""
    stops: int = 16
    stop_characters: int = 256
    tools: int = 128
    schema_bytes: int = 64 << 10
    """A JSON schema, the tools of a request, a grammar or a regular expression."""
    biases: int = 1024
    media: int = 16
    media_bytes: int = 32 << 20
    """Of one medium."""
    queue: int = 256
    """Requests that wait besides those that run."""
    seconds: float = 600.0
    """Of one request, waiting included."""
    template_seconds: float = 1.0
    stall_seconds: float = 30.0
    """How long a reader may leave its stream unread."""
    flush_seconds: float = 0.02
    """Between two pieces of a stream."""
    ping_seconds: float = 15.0
    """A stream with nothing to say sends a comment after so long."""


@dataclass(frozen=True)
class Settings:
    """How a server answers."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: frozenset[bytes] = frozenset()
    """SHA-256 digests of the keys; none means that nobody is asked for one."""
    alias: str | None = None
    """The model's name for clients; None is its own."""
    allowed_hosts: tuple[str, ...] = ()
    """``Host`` names that are answered besides those of this machine. Where the server listens elsewhere than on
    loopback and none is given, all are."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may ask; ``localhost`` is any page of this machine, ``*`` any page at all."""
    media_hosts: frozenset[str] = frozenset()
    """Hosts that media may be fetched from."""
    public_metrics: bool = False
    thinking: bool = False
    """Whether the model thinks where a request does not say."""
    parallel: int | str = "auto"
    context: int | None = None
    prefix_bytes: int | None = None
    draft: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def digests(keys: Iterable[str]) -> frozenset[bytes]:
    """Keys as they are held: their digests."""
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)
