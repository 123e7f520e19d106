"""API keys: read from a file or the environment, held and compared as digests."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

from gemma4_core import InputError
from gemma4_core.formatting import shown_path
from gemma4_serve.settings import Settings, digests

VARIABLE = "GEMMA4_API_KEY"
LONGEST_FILE = 64 << 10
SHORTEST, LONGEST = 8, 512


def read_keys(path: Path | None) -> frozenset[bytes]:
    """Digests of the keys in a file, one on each line, or of the one in ``GEMMA4_API_KEY``; none where neither is.

    Raises InputError for a file that cannot be read or holds no key, and for a key of fewer than 8 characters.
    """
    if path is None:
        given = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else []
        where = VARIABLE
    else:
        given, where = _lines(path), f"--api-key-file {shown_path(path)}"
    for number, key in enumerate(given, 1):
        if not SHORTEST <= len(key) <= LONGEST or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"{where}: key {number} must have {SHORTEST} to {LONGEST} printable ASCII characters, "
                             "none of them a space")
    return digests(given)


def _lines(path: Path) -> list[str]:
    where = f"--api-key-file {shown_path(path)}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST_FILE:
            raise InputError(f"{where}: must be a file of at most {LONGEST_FILE >> 10} kB with a key on each line")
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not UTF-8 text") from None
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise InputError(f"{where}: holds no key; write one on each line")
    return found


def presented(headers: dict[str, str]) -> list[str]:
    """The keys that a request shows, as a bearer token or in ``x-api-key``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    found = [token.strip()] if scheme.lower() == "bearer" else []
    return [key for key in (*found, headers.get("x-api-key", "").strip()) if key]


def key_allowed(headers: dict[str, str], settings: Settings) -> bool:
    """Whether a request shows one of the keys. Every key is compared in whole, so that time tells nothing."""
    if not settings.keys:
        return True
    right = False
    for key in presented(headers)[:2]:
        digest = hashlib.sha256(key.encode()).digest()
        for held in settings.keys:
            right |= hmac.compare_digest(digest, held)
    return right
