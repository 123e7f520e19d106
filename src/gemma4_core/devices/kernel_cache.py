"""tinygrad's disk cache of compiled kernels and searches, kept in this project's cache folder and checked.

What tinygrad reads there it runs as machine code and as pickles. Here each entry carries a digest, and a file that is
damaged, full, locked or not this user's own costs compilations and never the run. Entries stay readable for tinygrad:
the digest stands after the pickle's end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sqlite3
import sys
import threading
from collections.abc import Mapping
from typing import Any

from gemma4_core.devices import machine
from gemma4_core.devices.process import process
from gemma4_core.errors import DeviceError

DIGEST = hashlib.sha256().digest_size
LOCK_SECONDS = 20.0
"""Longest wait for another process that writes."""
TYPES = {str: "text", bool: "integer", int: "integer", float: "numeric", bytes: "blob"}
ENDINGS = ("", "-wal", "-shm", "-journal")
"""Of the files of a database."""


class KernelCache:
    """The connection to the database of this process. After a failure it is left alone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, str] | None = None
        """Process and path that the connection belongs to."""
        self._tables: set[str] = set()
        self._failed: str | None = None
        """A path that cannot be used."""

    def get(self, table: str, key: Mapping[str, Any] | str | int) -> Any:
        """As tinygrad's ``diskcache_get``: the value, None where there is none that is whole."""
        from tinygrad import helpers

        if helpers.CACHELEVEL < 1:
            return None
        keys = key if isinstance(key, Mapping) else {"key": key}
        where = " AND ".join(f"{name}=?" for name in keys)
        row = self._run(f"SELECT val FROM '{table}_{helpers.VERSION}' WHERE {where}", tuple(keys.values()))
        if row is None or not isinstance(row[0], bytes):
            return None
        content, found = row[0][:-DIGEST], row[0][-DIGEST:]
        if digest(table, keys, content) != found:
            return None
        try:
            return pickle.loads(content)
        except Exception:  # made by other versions
            return None

    def put(self, table: str, key: Mapping[str, Any] | str | int, val: Any, prepickled: bool = False) -> Any:
        """As tinygrad's ``diskcache_put``; returns the value."""
        from tinygrad import helpers

        if helpers.CACHELEVEL < 1:
            return val
        keys = key if isinstance(key, Mapping) else {"key": key}
        name = f"'{table}_{helpers.VERSION}'"
        content = val if prepickled else pickle.dumps(val)
        with self._lock:
            if name not in self._tables:
                columns = ", ".join(f"{column} {TYPES[type(value)]}" for column, value in keys.items())
                self._run(f"CREATE TABLE IF NOT EXISTS {name} ({columns}, val blob, PRIMARY KEY ({', '.join(keys)}))")
                self._tables.add(name)
            marks = ", ".join("?" * (len(keys) + 1))
            self._run(f"REPLACE INTO {name} ({', '.join(keys)}, val) VALUES ({marks})",
                      (*keys.values(), content + digest(table, keys, content)))  # fmt: skip
        return val

    def _run(self, command: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """The first row that a command gives. A database that is damaged is made anew, once."""
        from tinygrad import helpers

        path = os.path.abspath(helpers.CACHEDB)
        with self._lock:
            for last in (False, True):
                if path == self._failed:
                    return None
                try:
                    row: tuple[Any, ...] | None = self._open(path).execute(command, values).fetchone()
                    return row
                except (OSError, sqlite3.Error) as error:
                    operational = isinstance(error, sqlite3.OperationalError)
                    if operational and "no such table" in str(error):
                        return None
                    self._close()
                    if isinstance(error, sqlite3.DatabaseError) and not operational and not last:
                        remove(path)
                        continue
                    self._failed = path
                    tell(path, error)
        return None

    def _open(self, path: str) -> sqlite3.Connection:
        """The connection, made where it is missing. Raises OSError and sqlite3.Error."""
        if self._opened != (os.getpid(), path):
            self._connection, self._opened = None, (os.getpid(), path)
            self._tables.clear()
        if self._connection is None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if not machine.is_ours(os.stat(path)):
                    raise PermissionError(None, "another user owns it or can write to it")
            self._connection = sqlite3.connect(path, LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.text_factory = bytes  # a damaged entry may claim to be text
            with contextlib.suppress(sqlite3.OperationalError):  # another process is about to set it
                self._connection.execute("PRAGMA journal_mode=WAL").fetchone()
            self._connection.execute("PRAGMA synchronous=NORMAL")
        return self._connection

    def _close(self) -> None:
        self._tables.clear()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


kernel_cache = KernelCache()
"""The one of this process."""


def digest(table: str, key: Mapping[str, Any], content: bytes) -> bytes:
    """What stands after an entry's content: damage to the file may also bring another entry's to light."""
    found = hashlib.sha256(repr((table, sorted(key.items()))).encode(errors="surrogatepass"))
    found.update(content)
    return found.digest()


def remove(path: str) -> None:
    """Delete a database. Processes that have it open keep what they have."""
    for ending in ENDINGS:
        with contextlib.suppress(OSError):
            os.unlink(path + ending)


def tell(path: str, error: Exception) -> None:
    """One line on stderr."""
    from gemma4_core.formatting import shown_path

    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"Warning: {shown_path(path)}: {reason}; kernels are compiled without a cache; set XDG_CACHE_HOME "
                  f"(or CACHEDB) to a place that can be written", file=sys.stderr, flush=True)  # fmt: skip


def install(mark: str = "") -> None:
    """Put this in the place of tinygrad's own, here and in its compile workers.

    The file is ``kernels.db`` in the cache folder, ``kernels-<mark>.db`` for kernels that hold only where ``mark``
    does, or the user's ``CACHEDB``. Where there is no folder nothing is kept.
    """
    from tinygrad import helpers

    replace_functions()
    asked = os.environ.get("CACHEDB", "")
    if asked not in ("", process.cache_file) or (asked and not mark):
        return
    try:
        path = str(machine.cache_dir() / (f"kernels-{mark}.db" if mark else "kernels.db"))
    except DeviceError:
        helpers.CACHELEVEL.value = 0
        os.environ["CACHELEVEL"] = "0"  # for the workers
        return
    os.environ["CACHEDB"] = helpers.CACHEDB = process.cache_file = path


def replace_functions() -> None:
    """tinygrad's modules take the functions by name from ``helpers``."""
    from tinygrad import helpers
    from tinygrad.engine import worker

    if worker._init_worker is init_worker:
        return
    process.replace(worker, "_init_worker", lambda original: init_worker)
    own = {helpers.diskcache_get: kernel_cache.get, helpers.diskcache_put: kernel_cache.put}
    for name, module in list(sys.modules.items()):
        if name.startswith("tinygrad"):
            for attribute in ("diskcache_get", "diskcache_put"):
                if getattr(module, attribute, None) in own:
                    process.replace(module, attribute, own.get)


def init_worker() -> None:
    """What a compile worker starts with: tinygrad's own, and this cache."""
    from tinygrad.engine import worker

    process.original(worker, "_init_worker")()
    replace_functions()
