"""Packages as they lie on disk: what tells one state of a package's code from another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from gemma4_core.plugins.entrypoints import OWN_DISTRIBUTION
from gemma4_core.plugins.manager import LoadedPlugin

STARTED = time.time_ns()
"""Code that was written later may differ from what this process has imported."""
UNTOUCHED = ("__pycache__",)
"""Folders of what Python itself makes."""


@dataclass(frozen=True)
class PackageState:
    """A top-level package at the start of this process."""

    package: str
    distribution: str | None
    """None where no installed plugin comes from it: code that was put in by hand."""
    version: str | None
    digest: str
    """Of names, sizes and times of all of its files."""


def package_of(made: Any) -> str | None:
    """The top-level package of a function or class that a module has under its own name; None for every other one, such
    as a closure, a wrapper that took over another's name, or what was typed into a notebook."""
    module, name = getattr(made, "__module__", None), getattr(made, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    return module.split(".")[0] if getattr(sys.modules.get(module), name, None) is made else None


def package_state(package: str, plugins: list[LoadedPlugin]) -> PackageState | None:
    """The state of a package, None where it cannot be told: it has no files, or some changed after this process began.

    Args:
        package: the name of a top-level package.
        plugins: those that are installed, for distribution and version.
    """
    digest = digest_of(package)
    if digest is None:
        return None
    if package == __name__.split(".")[0]:
        return PackageState(package, OWN_DISTRIBUTION, importlib.metadata.version(OWN_DISTRIBUTION), digest)
    found = next((plugin.origin for plugin in plugins if plugin.package == package), None)
    return PackageState(package, found.distribution if found else None, found.version if found else None, digest)


@cache
def digest_of(package: str) -> str | None:
    """See ``PackageState.digest``; None as for ``package_state``."""
    try:
        files = sorted(files_of(package))
    except (OSError, ImportError, ValueError):
        return None
    if not files or any(max(times) > STARTED for _, _, times in files):
        return None
    return hashlib.sha256(repr(files).encode(errors="surrogatepass")).hexdigest()


def files_of(package: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Path, size, and times of writing and of changing of each file, whatever kind it is: kernels are source files too.

    Raises OSError, ImportError and ValueError where they cannot be found.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or ())
    if not folders and spec.has_location and spec.origin is not None:
        yield described(spec.origin, os.stat(spec.origin))
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    if entry.name not in UNTOUCHED:
                        folders.append(entry.path)
                else:
                    yield described(entry.path, entry.stat())


def described(path: str, status: os.stat_result) -> tuple[str, int, tuple[int, int]]:
    """A file as it counts for the digest: a change that keeps its size and time of writing has a time of its own."""
    return path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns)
