"""Media from hosts that were allowed: one parser for check and use, one look-up, no private address, no redirect.

What others learnt: vLLM CVE-2026-24779 (two URL parsers), CVE-2026-25960 and CVE-2026-34753 (addresses inside a
network).
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection

from gemma4_serve.errors import wrong
from gemma4_serve.security.hosts import split

SECONDS = 10.0
PIECE = 64 << 10
LONGEST_URL = 4096


def fetch(url: str, hosts: Collection[str], most: int) -> bytes:
    """The content behind a URL of one of ``hosts``, at most so many bytes. Raises ApiError."""
    parts = split(url)
    if parts is None or len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or "\\" in url:
        raise wrong("the URL cannot be read")
    name = parts.hostname or ""
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or name not in {host.lower() for host in hosts}:
        raise wrong("media of this host are not fetched (--allow-media-host)")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = public_address(name, port)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return _get(address, port, name, target, secure, most)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise wrong(f"the medium cannot be fetched ({type(error).__name__})") from error


def public_address(name: str, port: int) -> str:
    """An address of a host, asked for once, all of whose addresses are public. Raises ApiError."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise wrong("the medium's host is not known") from None
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise wrong("the medium's host has an address that is not public")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public Internet. IPv6 forms of IPv4 addresses are judged by what is inside."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if found in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PinnedConnection(http.client.HTTPConnection):
    """A connection to an address that was checked, under the host's name."""

    def __init__(self, address: str, name: str, port: int, secure: bool) -> None:
        super().__init__(name, port, timeout=SECONDS)
        self.address, self.secure = address, secure

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), SECONDS)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _get(address: str, port: int, name: str, target: str, secure: bool, most: int) -> bytes:
    ends = time.monotonic() + SECONDS
    connection = PinnedConnection(address, name, port, secure)
    try:
        connection.request("GET", target, headers={"User-Agent": "gemma4", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise wrong(f"the medium's host answers with status {answer.status}; redirects are not followed")
        if (answer.getheader("content-encoding") or "identity").lower() != "identity":
            raise wrong("the medium's host sends compressed content, which is not read")
        pieces, size = [], 0
        while piece := answer.read1(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise wrong(f"the medium is larger than {most >> 20} MiB")
            if time.monotonic() > ends:
                raise wrong(f"the medium took longer than {SECONDS:g} seconds")
        return b"".join(pieces)
    finally:
        connection.close()
