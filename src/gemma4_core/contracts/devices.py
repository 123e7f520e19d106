"""Devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gemma4_core.contracts.context import Matches, always

if TYPE_CHECKING:
    import numpy as np
    from tinygrad.device import Buffer

    from gemma4_core.ops import Operations


@dataclass(frozen=True)
class DeviceSettings:
    """What the user asked of a device."""

    beam: int = 0
    """Width of tinygrad's kernel search, 0 is off."""
    beam_seconds: float = 120.0
    """Time budget of that search for the whole process."""


class Staging(Protocol):
    """Memory that a device copies from by itself, such as page-locked memory: files are read into its slots."""

    slots: Sequence[np.ndarray]
    """uint8, of equal size, a multiple of 16 bytes."""

    def copy(self, slot: int, size: int, buffer: Buffer, offset: int) -> None:
        """Queue a copy of a slot's first ``size`` bytes into a buffer of the device, ``offset`` bytes from its start,
        ahead of the device's later work."""

    def wait(self, slot: int) -> None:
        """Return when no copy reads the slot any more."""


@dataclass(frozen=True)
class DeviceBackend:
    """A device. ``priority`` orders ``--device auto``; the first usable one is taken."""

    name: str
    summary: str
    target: str
    """tinygrad's device name, such as ``CPU`` or ``CUDA``."""
    unusable: Callable[[], str | None]
    """None where the device opens; else why not, in one sentence with a next step. Opens the device to know."""
    prepare: Callable[[DeviceSettings], None] | None = None
    """Set tinygrad up (compiler, threads, beam) before the device is used."""
    operations: Callable[[], Operations] | None = None
    """The fast operations that it brings; portable ones otherwise."""
    free_memory: Callable[[], int | None] | None = None
    """Free memory in bytes of the opened device; None where it does not tell."""
    details: Callable[[], Mapping[str, str]] | None = None
    """What ``gemma4 doctor`` shows of the opened device, such as its model or compiler, by name."""
    read_bandwidth: Callable[[], float | None] | None = None
    """Bytes per second of a plain read of more memory than caches hold, measured when asked on the opened device; None
    where it cannot be told. Without it a sum of tinygrad's is timed."""
    staging: Callable[[], Staging] | None = None
    """Memory to load checkpoints through, made on the opened device and let go after a load; without it tinygrad
    copies."""
    matches: Matches = always
    priority: int = 0
