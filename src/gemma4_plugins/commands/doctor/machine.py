"""What ``gemma4 doctor`` reports about this machine and installation."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gemma4_core.devices import machine

DISTRIBUTION = "tinygrad-gemma4"
TINYGRAD = "0.14."
"""The tinygrad version that this package needs."""
VARIABLES = ("DEV", "CC", "BEAM", "PARALLEL", "NUM_CPU_THREADS", "GEMMA4_", "TINYGRAD_GEMMA_", "HF_HOME",
             "HF_HUB_CACHE", "HF_HUB_OFFLINE", "CACHEDB", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES")  # fmt: skip
"""Environment variables that matter; those that end in ``_`` are prefixes."""
SECRET = re.compile("token|key|secret|password", re.IGNORECASE)


@dataclass(frozen=True)
class DeviceReport:
    """A device and whether it can be used here."""

    name: str
    usable: bool
    reason: str | None
    """Why not."""
    details: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int | None = None


@dataclass(frozen=True)
class Report:
    """Everything about this machine and installation."""

    versions: Mapping[str, str]
    """Version of this package and of each dependency; ``absent`` where one is not there."""
    python: str
    system: str
    cores: int
    threads: int | str
    """Threads for kernels, or why their number is unknown."""
    total_bytes: int | None
    free_bytes: int | None
    devices: tuple[DeviceReport, ...]
    auto: str | None
    """The device that ``--device auto`` takes."""
    plugins: tuple[str, ...]
    """Plugins that loaded, ``name (kind)``."""
    blocked: tuple[str, ...]
    problems: tuple[str, ...]
    """Problems, one line each."""
    folders: Mapping[str, str]
    environment: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine(environment: Mapping[str, str] | None = None) -> Report:
    """Make the report. Opens every device, one after the other; what libraries print goes to stderr.

    ``environment`` is what ``relevant_environment`` gave beforehand, because opening a device sets variables.
    """
    environment = relevant_environment() if environment is None else environment
    with contextlib.redirect_stdout(sys.stderr):
        devices, auto = _devices()
        plugins, blocked, problems = _plugins()
    versions = _versions()
    tinygrad = versions.get("tinygrad", "absent")
    if not tinygrad.startswith(TINYGRAD):
        problems.append(f"tinygrad is {tinygrad}, this needs {TINYGRAD}x: pip install 'tinygrad=={TINYGRAD}*'")
    try:
        threads: int | str = machine.thread_count()
    except Exception as error:
        threads = str(error)
        problems.append(threads)
    return Report(
        versions=versions,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=machine.cpu_count(),
        threads=threads,
        total_bytes=machine.total_memory_bytes(),
        free_bytes=machine.free_memory_bytes(),
        devices=tuple(devices),
        auto=auto,
        plugins=tuple(plugins),
        blocked=tuple(blocked),
        problems=tuple(problems),
        folders=_folders(),
        environment=environment,
    )


def _versions() -> dict[str, str]:
    """Versions of this package and of its dependencies, optional ones where installed."""
    found = {DISTRIBUTION: _version(DISTRIBUTION)}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires(DISTRIBUTION) or []:
            name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
            optional = ";" in line
            told = _version(name)
            if name != DISTRIBUTION and not (optional and told == "absent"):
                found[name] = told
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _devices() -> tuple[list[DeviceReport], str | None]:
    """Every device in the order of ``--device auto``, and the one that this would take."""
    from gemma4_core.contracts import Context
    from gemma4_core.errors import Gemma4Error
    from gemma4_core.plugins import registry

    reports = []
    for backend in sorted(registry.devices.values(), key=lambda d: (-d.priority, d.name)):
        reason = registry.unusable(backend)
        details: Mapping[str, str] = {}
        free = None
        if reason is None:
            with contextlib.suppress(Exception):
                details = dict(backend.details()) if backend.details is not None else {}
            with contextlib.suppress(Exception):
                free = backend.free_memory() if backend.free_memory is not None else None
        reports.append(DeviceReport(backend.name, reason is None, reason, details, free))
    usable = {report.name for report in reports if report.usable}
    try:
        candidates = [backend.name for backend in registry.matching("device", Context())]
    except Gemma4Error:
        candidates = []
    return reports, next((name for name in candidates if name in usable), None)


def _plugins() -> tuple[list[str], list[str], list[str]]:
    """Loaded plugins, blocked plugins and problems."""
    from gemma4_core.plugins import registry

    rows = registry.rows()
    loaded = [f"{row.name} ({row.kind})" for row in rows if row.status == "loaded" and row.kind]
    return loaded, [row.name for row in rows if row.status == "blocked"], registry.problems()


def _folders() -> dict[str, str]:
    """Folders of caches and state."""
    try:
        found = {"gemma4 cache": str(machine.cache_dir())}
    except Exception as error:
        found = {"gemma4 cache": str(error)}
    with contextlib.suppress(Exception):
        from tinygrad import helpers

        found["kernel cache"] = str(helpers.CACHEDB)
    with contextlib.suppress(Exception):
        from huggingface_hub import constants

        found["Hugging Face cache"] = str(constants.HF_HUB_CACHE)
    return found


def relevant_environment() -> dict[str, str]:
    """Variables that matter and are set, without secrets."""
    found = {}
    for name, value in sorted(os.environ.items()):
        if name in VARIABLES or name.startswith(tuple(v for v in VARIABLES if v.endswith("_"))):
            found[name] = "(set)" if SECRET.search(name) else value
    return found
