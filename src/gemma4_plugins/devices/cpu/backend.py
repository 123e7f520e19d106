"""The CPU: a compiler found for tinygrad, and threads for its kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gemma4_core.contracts import DeviceBackend, DeviceSettings
from gemma4_core.devices import chosen_by_dev, machine
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import reason_of

if TYPE_CHECKING:
    from gemma4_core.ops import Operations

TARGET = "CPU"


def unusable() -> str | None:
    """None where a compiler is found and tinygrad's CPU device opens with it."""
    from gemma4_plugins.devices.native import compiler

    choice = compiler.configure()
    if choice.path is None:
        return compiler.what_to_install(choice)
    try:
        from tinygrad import Device

        _ = Device[TARGET].renderer
    except Exception as error:
        return f"tinygrad's CPU device does not open with {choice.name}: {reason_of(error)}; unset DEV and CC"
    return None


def prepare(settings: DeviceSettings) -> None:
    """Set the compiler and spread kernels over the cores. Raises DeviceError for a thread count out of range."""
    from gemma4_plugins.devices.cpu.kernels import amx
    from gemma4_plugins.devices.native import compiler, threads

    compiler.configure()
    amx.permitted()  # kernels that an earlier process compiled use the registers without asking
    threads.install(machine.thread_count())


def details() -> dict[str, str]:
    """Compiler, those passed over, threads, tile registers where there are any."""
    from gemma4_plugins.devices.cpu.kernels import amx
    from gemma4_plugins.devices.native import compiler, threads

    choice = compiler.chosen()
    passed = {f"passed over {name}": why for name, why in choice.passed}
    kind = f", {threads.pool_kind()} pool" if machine.thread_count() > 1 else ""
    told = f"{choice.name} ({choice.version}): {choice.path}"
    found = {"compiler": told, **passed, "threads": f"{machine.thread_count()}{kind}"}
    if amx.present():
        found["AMX"] = "granted" if amx.permitted() else "the system does not grant its registers to this process"
    return found


def operations() -> Operations:
    """The portable operations with what there is in C; ``GEMMA4_KERNELS=portable`` turns that off."""
    from gemma4_core.ops import kernels_wanted, portable

    if not kernels_wanted():
        return portable()
    from gemma4_plugins.devices.cpu.kernels.text import CHUNK, PICTURE, step
    from gemma4_plugins.devices.cpu.kernels.towers import tower_operations
    from gemma4_plugins.devices.cpu.kernels.training import FUSED, matmul

    return replace(
        portable(), name="cpu", step=step, prefill_chunk=CHUNK, shared_chunk=64, prefill_both_ways=PICTURE,
        towers=tower_operations, matmul=matmul, fused=FUSED, plain_below=1 << 20,
    )


def read_bandwidth() -> float | None:
    """Bytes per second that all threads read together."""
    from gemma4_plugins.devices.cpu import bandwidth

    return bandwidth.read_bandwidth()


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="cpu",
            summary="this machine's processor, all cores",
            target=TARGET,
            unusable=unusable,
            prepare=prepare,
            operations=operations,
            free_memory=machine.free_memory_bytes,
            details=details,
            read_bandwidth=read_bandwidth,
            matches=chosen_by_dev(TARGET),
            priority=10,
        )
    ]
