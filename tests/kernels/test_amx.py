"""AMX: when it is used, and what is compiled for processors with and without it. What the code computes is tested in
test_cpu_prefill.py and test_vision_products.py, with the instructions said in C where the processor lacks them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from cross_compiling import assembly

from gemma4_core.contracts import DeviceSettings
from gemma4_plugins.devices.cpu import backend as cpu
from gemma4_plugins.devices.cpu.kernels import amx, build, text, towers
from gemma4_plugins.devices.native import compiler, threads

INTEL = "vendor_id : GenuineIntel; flags : fpu avx512_bf16 avx512_vnni"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A processor and a system to choose, and what the system was asked for."""
    made = SimpleNamespace(flags=f"{INTEL} amx_bf16 amx_tile", answer=0, asked=[])
    monkeypatch.setattr(amx.sys, "platform", "linux")
    monkeypatch.setattr(amx.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(amx.machine, "processor", lambda: made.flags)
    library = SimpleNamespace(syscall=lambda *given: made.asked.append(given) or made.answer)
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda name: library)
    amx.permitted.cache_clear()
    yield made
    amx.permitted.cache_clear()


def test_the_system_is_asked_once(machine: SimpleNamespace) -> None:
    assert amx.permitted() and amx.permitted()
    assert machine.asked == [(158, 0x1023, 18)]
    assert "AMX_PERMITTED 1" in build.tuning() and cpu.details()["AMX"] == "granted"


def test_a_process_asks_before_it_runs_what_another_one_compiled(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "configure", lambda: None)
    monkeypatch.setattr(threads, "install", lambda count: None)
    cpu.prepare(DeviceSettings())
    assert machine.asked == [(158, 0x1023, 18)]


def test_a_system_that_refuses(machine: SimpleNamespace) -> None:
    machine.answer = -1
    assert not amx.permitted() and "AMX_PERMITTED 1" not in build.tuning()
    assert "does not grant" in cpu.details()["AMX"]


@pytest.mark.parametrize("flags", [INTEL, f"{INTEL} amx_tile amx_int8", "vendor_id : AuthenticAMD"])
def test_processors_without_are_not_asked(machine: SimpleNamespace, flags: str) -> None:
    machine.flags = flags
    assert not amx.permitted() and machine.asked == [] and "AMX" not in cpu.details()
    assert ("SLOW_PAIRS 1" in build.tuning()) == ("GenuineIntel" in flags)


def compiled(source: str, defines: tuple[str, ...], architecture: str, *flags: str) -> str:
    """Assembly for an x86-64 processor."""
    given = "".join(f"#define {define}\n" for define in defines)
    return assembly(given + source, "x86_64", f"-march={architecture}", *flags)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["text", "linear.c", "attention.c"])
def test_instructions(cpu: str, machine: SimpleNamespace, unit: str) -> None:
    if unit == "text":
        source, defines = "".join((build.HERE / name).read_text() for name in text.SOURCES), ("YIELD_SYSCALL",)
    else:
        source = towers._source(unit)
        sizes = "M 100", "N 70", "K 144", "COUNT 100", "HEADS 4", "KEY_HEADS 2", "SIZE 72"
        given = {"linear.c": "aw", "attention.c": "qkv"}[unit]
        inputs = ", ".join([*(f"const item *restrict {name}" for name in given), "const u8 *restrict real"])
        defines = ("NAME tested", "BF16 1", "PARTS 2", f"INPUTS {inputs}", *sizes)
    with_tiles = compiled(source, (*defines, *build.tuning()), "sapphirerapids")
    assert "tdpbf16ps" in with_tiles and "tilerelease" in with_tiles and "vdpbf16ps" not in with_tiles
    machine.answer = -1
    amx.permitted.cache_clear()
    refused = compiled(source, (*defines, *build.tuning()), "sapphirerapids")
    assert "tdpbf16ps" not in refused and "vdpbf16ps" not in refused  # slower there than fp32
    assert re.search(r"vfmadd\d+ps.*%zmm", refused)
    if unit != "text":  # whose products with a vector may take either width
        assert not re.search(r"vfmadd\d+ps.*%ymm", refused)
    masked = compiled(source, (*defines, "AMX_PERMITTED 1"), "sapphirerapids", "-mno-avx512f")
    assert "tdpbf16ps" not in masked  # rows of tiles are wider than its vectors
    assert "vdpbf16ps" in compiled(source, defines, "znver4")
