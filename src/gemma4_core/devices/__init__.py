"""Choosing a device and setting tinygrad up for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from gemma4_core.contracts import Context, DeviceBackend, DeviceSettings, Staging
from gemma4_core.devices import machine
from gemma4_core.devices.machine import cache_dir
from gemma4_core.devices.process import process
from gemma4_core.errors import DeviceError, Gemma4Error, InputError
from gemma4_core.plugins import registry

__all__ = ["activate", "cache_dir", "chosen_by_dev", "end_compilers", "free_memory_bytes", "requested_target"]

MAX_BEAM = "TINYGRAD_GEMMA_MAX_BEAM"
DEFAULT_MAX_BEAM = 4


def end_compilers() -> None:
    """End the processes in which tinygrad compiles. Where another thread than the main one began them, they would keep
    the program from ending; the next kernel begins new ones."""
    from tinygrad.engine.worker import terminate_worker_pool

    terminate_worker_pool()


def parse_beam(value: str | int) -> int:
    """The width of the kernel search from ``--beam``: a whole number from 0 (off), or ``max``.

    ``max`` is ``TINYGRAD_GEMMA_MAX_BEAM``, 4 by default. Raises InputError naming the value.
    """
    text = str(value).strip()
    if text.lower() != "max":
        return _width(text, f"--beam {_shown(value)}: give a whole number from 0 (off), or max")
    text = os.environ.get(MAX_BEAM, "").strip() or str(DEFAULT_MAX_BEAM)
    return _width(text, f"{MAX_BEAM}={_shown(text)}: --beam max needs a whole number from 0 there")


def _width(text: str, complaint: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise InputError(complaint)
    return int(text)


def _shown(value: object) -> str:
    return repr(str(value)[:100])


def activate(device: str, settings: DeviceSettings) -> tuple[DeviceBackend, str]:
    """Choose a device by name (any case) or ``auto``, set tinygrad up, and make it tinygrad's default device.

    ``auto`` takes the usable device of the highest priority, among those that tinygrad's ``DEV`` names if it is set.
    Returns the plugin and tinygrad's device string. Raises PluginError for an unknown name, DeviceError where the
    device cannot be used, InputError for settings out of range.
    """
    from gemma4_core.devices import kernel_cache
    from gemma4_core.devices.kernel_search import configure_search

    backend = registry.select_device(_without_index(device))
    kernel_cache.install()
    if backend.prepare is not None:
        try:
            backend.prepare(settings)
        except Gemma4Error:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DeviceError(f"device {backend.name} could not be prepared: {reason}") from error
    set_default_device(backend.target)
    configure_search(backend.target, settings)
    return backend, backend.target


def _without_index(device: str) -> str:
    """``cuda:0`` is ``cuda``; another index is refused, since tinygrad has one default device per backend."""
    base, colon, index = device.rpartition(":")
    if not colon or not index.isdigit() or base not in registry.devices:
        return device
    if int(index) != 0:
        hint = {"CUDA": "CUDA_VISIBLE_DEVICES", "NV": "CUDA_VISIBLE_DEVICES", "AMD": "HIP_VISIBLE_DEVICES"}
        variable = hint.get(registry.devices[base].target)
        next_step = f"set {variable}={index} and use --device {base}" if variable else f"use --device {base}"
        raise DeviceError(f"--device {_shown(device)}: one device is used, the first that is visible; {next_step}")
    return base


# ------------------------------------------------------------------------------------------------ tinygrad's DEV


def requested_target() -> str | None:
    """The tinygrad device that the user's own ``DEV`` names first (environment or tinygrad Context), None if unset."""
    text = _dev_text()
    if process.dev is not None and text == process.dev[0]:
        text = process.dev[1]
    return text.split(";")[0].split("+")[-1].split(":")[0].upper() or None


def chosen_by_dev(target: str) -> Callable[[Context], bool]:
    """``matches`` of a device for ``--device auto``: where the user set ``DEV``, only the device that it names."""
    return lambda context: requested_target() in (None, target)


def set_default_device(target: str) -> None:
    """Make ``target`` tinygrad's default device in this process and the processes that it starts.

    Other parts of the user's ``DEV`` (renderers, interfaces, further devices) stay as they are.
    """
    from dataclasses import replace

    from tinygrad.helpers import DEV, Target

    before = _dev_text()
    parts = list(DEV.value)
    own = next((part for part in parts if part.device == target), None)
    own = own or next((part for part in parts if not part.device), Target())
    DEV.value = [replace(own, device=target), *(part for part in parts if part.device not in ("", target))]
    if process.dev is None or before != process.dev[0]:
        process.dev = repr(DEV), before
    else:
        process.dev = repr(DEV), process.dev[1]
    os.environ["DEV"] = repr(DEV)


def _dev_text() -> str:
    helpers = sys.modules.get("tinygrad.helpers")
    return os.environ.get("DEV", "") if helpers is None else repr(helpers.DEV)


# ------------------------------------------------------------------------------------------------ memory


def free_memory_bytes(device: str) -> int | None:
    """Free memory in bytes of a tinygrad device, None where it does not tell."""
    if device.split(":")[0].upper() in ("CPU", "PYTHON"):
        return machine.free_memory_bytes()
    return _first_answer(device, lambda backend: backend.free_memory)


def staging_of(device: str) -> Staging | None:
    """Memory to load a tinygrad device through, None where its plugin brings none or cannot make it now."""
    return _first_answer(device, lambda backend: backend.staging)


T = TypeVar("T")


def _first_answer(device: str, asked: Callable[[DeviceBackend], Callable[[], T] | None]) -> T | None:
    """What the first plugin of a tinygrad device that answers a question answers; None where it fails."""
    target = device.split(":")[0].upper()
    for backend in registry.devices.values():
        question = asked(backend) if backend.target == target else None
        if question is not None:
            try:
                return question()
            except Exception:
                return None
    return None
