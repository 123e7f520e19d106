"""``Host`` and ``Origin``: a page of another site must not reach this machine through somebody's browser."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from gemma4_serve.settings import Settings, is_loopback


def host_name(header: str) -> str | None:
    """The name in a ``Host`` header, lower case, without its port; None where it is none."""
    parts = split(f"//{header}")
    if parts is None or parts.netloc != header or "@" in header or not parts.hostname:
        return None
    return parts.hostname


def split(url: str) -> SplitResult | None:
    """The parts of a URL; None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    return parts


def host_allowed(header: str | None, settings: Settings) -> bool:
    """Whether a request for this host is answered. On loopback only the machine's own names are, so that a name that an
    attacker's DNS points at 127.0.0.1 is not (ollama CVE-2024-28224)."""
    name = None if header is None else host_name(header)
    if name is None:
        return False
    if settings.allowed_hosts:
        return is_loopback(name) or name in {host.lower() for host in settings.allowed_hosts}
    return is_loopback(name) or name == settings.host.lower() if settings.on_loopback else True


def origin_allowed(origin: str, host: str | None, settings: Settings) -> bool:
    """Whether a page of this origin may ask: one of the server's own, or one that was allowed."""
    if listed(origin, settings):
        return True
    parts = split(origin)
    return parts is not None and parts.scheme in ("http", "https") and host is not None and parts.netloc == host


def listed(origin: str, settings: Settings) -> bool:
    """Whether an origin is among those that may ask from elsewhere."""
    for allowed in settings.origins:
        if allowed in ("*", origin):
            return True
        parts = split(origin)
        if allowed == "localhost" and parts is not None and parts.hostname is not None and is_loopback(parts.hostname):
            return True
    return False
