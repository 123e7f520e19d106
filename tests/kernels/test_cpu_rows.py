"""Rows of several slots in one call of the processor's kernels: products of few rows, choices, rows beside the portable
form, prompts and decoding together."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from installed import once
from sampling_cases import M, V, case, sampled
from training_tools import quick
from wide_model import CONFIG, IDS

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.engine.rows import greedy_rows, joined
from gemma4_core.model.slots import SlotStore
from gemma4_core.quantize import quantize
from gemma4_plugins.devices.cpu.kernels import build, text
from gemma4_plugins.devices.cpu.kernels.structs import CCall
from gemma4_plugins.devices.native import compiler, loader

TESTS = Path(__file__).parents[1]
X86 = platform.machine() in ("x86_64", "AMD64")
EDGES = (1, 2, 15, 16, 63, 64, 69, 70, 71, 127, 128, 255, 256, 257, 325, 330)
"""Positions that a row sees: about the window of 70, the ring, a chunk, and the parts of a long context."""


def unit(name: str, *defines: str, emulated: bool = False) -> build.Program:
    """A function of a file beside this folder, which begins and ends the unit of the text kernels."""
    file, at = str(TESTS / name), text.SOURCES.index("amx.c")
    registers = (str(TESTS / "amx_emulation.c"),) if emulated else ()
    return build.load((file, *text.SOURCES[:at], *registers, *text.SOURCES[at:], file), ("YIELD_SYSCALL", *defines))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Programs are compiled for what a test sets."""
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    return monkeypatch


def take(form: str, patch: pytest.MonkeyPatch) -> None:
    """Compile for a lesser processor: one without tile registers, one whose vectors multiply pairs fast, or by name."""
    patch.setattr(build, "permitted", lambda: False)
    original = loader.ClangCompiler
    if form == "pairs":
        flags = build.machine.processor()
        if "avx512_bf16" not in flags:
            pytest.skip("this processor multiplies no pairs of bf16")
        patch.setattr(build.machine, "processor", lambda: flags.replace("GenuineIntel", "AuthenticAMD"))
    elif form != "vectors":
        patch.setattr(loader, "ClangCompiler", lambda arch: original([arch[0], form]))


FORMS = ["native", "vectors", *(["pairs", "haswell", "nehalem"] if X86 else [])]


@pytest.mark.parametrize("form", [*FORMS, "tiles"])
def test_products_of_few_rows(form: str, cpu: str, fresh: pytest.MonkeyPatch) -> None:
    if form not in ("native", "tiles"):
        take(form, fresh)
    if form == "tiles":  # their instructions said in C
        fresh.setattr(build, "permitted", lambda: False)
    room, worst = np.zeros(64 << 20, np.uint8), np.zeros((3, 4))
    products = unit("few_products.c", emulated=form == "tiles").fxn
    products(ctypes.c_uint64(room.ctypes.data), ctypes.c_uint64(worst.ctypes.data))
    assert worst[:2].max() < 5e-5 and worst[:2, :2].max() < 1e-6 and worst[2].max() < 5e-5
    assert np.count_nonzero(worst) >= 3
    assert form != "tiles" or worst[1, 3] > 0


@pytest.mark.slow
def test_products_of_few_rows_on_arm(tmp_path: Path) -> None:
    """In an emulator of the whole processor, where the distribution's package has brought one."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        assert not os.environ.get("GEMMA4_NEEDS_QEMU"), "qemu-user was installed, and there is no qemu-aarch64"
        pytest.skip("no qemu-aarch64: install the distribution's package qemu-user")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("only ziglang brings a linker for ARM")
    own = (TESTS / "few_products.c").read_text()
    source = "#define MAIN\n" + own + "".join((build.HERE / name).read_text() for name in text.SOURCES) + own
    made, program = tmp_path / "products.o", tmp_path / "products"
    flags = ("-c", "-x", "c", "-O2", "-ffreestanding", "-fno-math-errno", "-nostdlib", "-fno-pic", "-ffixed-x18")
    compile_it = [str(compiler.configure().path), *flags, "--target=aarch64-none-elf", "-", "-o", str(made)]
    subprocess.run(compile_it, input=source.encode(), check=True, timeout=300)
    link_it = [sys.executable, "-m", "ziglang", "ld.lld", "-static", "-o", str(program), str(made)]
    subprocess.run(link_it, check=True, timeout=300)
    assert subprocess.run([emulator, str(program)], timeout=600).returncode == 0


# --------------------------------------------------------------------------------------------------- whole rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rows")
    folder = write_random_checkpoint(root / "model", CONFIG, 3)
    return {"bf16": folder, "int8": quantize(folder, root / "int8", "int8")}


@pytest.fixture(scope="module")
def truth(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Logits of all positions by the portable form: of both in fp32, and of one in bf16."""

    def make(target: Path) -> None:
        target.mkdir()
        with quick(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("GEMMA4_KERNELS", "portable")
            found = {}
            for form, dtype in (("bf16", "float32"), ("bf16", "bfloat16"), ("int8", "float32")):
                model = load_pretrained(folders[form], device="cpu", dtype=dtype)
                found[f"{form} {dtype}"] = model.forward_ids([IDS], cache=model.make_cache())[0].numpy()[0]
            np.savez(target / "found.npz", **found)

    with np.load(once(tmp_path_factory, "portable-rows", make) / "found.npz") as file:
        return dict(file)


def distance(ours: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(ours - truth) / np.linalg.norm(truth - truth.mean()))


def decoded(folder: Path, dtype: str, counts: tuple[int, ...]) -> list[np.ndarray]:
    """Logits of the row behind each slot's first positions, for so many slots at once."""
    model = load_pretrained(folder, device="cpu", dtype=dtype)
    lengths = [EDGES[slot % len(EDGES)] for slot in range(max(counts))]
    slots, none, found = SlotStore(model, max(counts), 360), np.array([], np.int32), []
    for slot, length in enumerate(lengths):
        for start in range(0, length, 256):
            numbers = np.arange(start, min(start + 256, length), dtype=np.int32)
            rows = Rows(np.array(IDS, np.int32)[numbers], np.full(len(numbers), slot, np.int32), numbers, none)
            model.engine.run(slots, rows, None)
    for count in counts:
        position, numbers = np.array(lengths[:count], np.int32), np.arange(count, dtype=np.int32)
        rows = Rows(np.array(IDS, np.int32)[position], numbers, position, numbers)
        result = model.engine.run(slots, rows, greedy_rows(count), logits=True)
        assert result.logits is not None
        logits = result.logits.numpy()[:count]
        assert [token for token, _ in result.read()] == logits.argmax(1).tolist()
        found.append(logits.copy())
    return found


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("form", [pytest.param(form, marks=[] if form == "native" else pytest.mark.slow)
                                  for form in FORMS])
def test_rows_equal_the_portable_form_at_every_edge(
    form: str, kind: str, folders: dict[str, Path], truth: dict[str, np.ndarray], fresh: pytest.MonkeyPatch
) -> None:
    if form != "native":
        take(form, fresh)
    fresh.setattr(text, "load", build.load)
    counts = (16, 2, 5, 17, 70) if form == "native" else (5, 16)
    exact = truth[f"{kind} float32"]
    for dtype in ("bfloat16", "float32"):
        for ours in decoded(folders[kind], dtype, counts):
            at = [EDGES[slot % len(EDGES)] for slot in range(len(ours))]
            rounding = distance(truth["bf16 bfloat16"][at], truth["bf16 float32"][at])
            digits = 2e-3 if kind == "int8" else 1e-4  # of activations, 16 bits of their largest
            assert distance(ours, exact[at]) < (1.35 * rounding if dtype == "bfloat16" else digits)


@pytest.mark.usefixtures("plain_loops")
def test_prompts_decoding_and_drafts_in_one_call(folders: dict[str, Path]) -> None:
    model, ids = load_pretrained(folders["bf16"], device="cpu", dtype="float32"), np.array(IDS, np.int32)

    def part(slot: int, start: int, stop: int, wanted: list[int]) -> Rows:
        numbers = np.arange(start, stop, dtype=np.int32)
        return Rows(ids[numbers], np.full(len(numbers), slot, np.int32), numbers, np.array(wanted, np.int32))

    parts = [part(3, 40, 41, [0]), part(1, 0, 90, []), part(0, 75, 80, [0, 1, 2, 3, 4]), part(2, 0, 33, [32])]
    found = []
    for calls in ([joined(parts)], parts):
        slots, hidden, tokens = SlotStore(model, 4, 120), [], []
        for slot, length in ((3, 40), (0, 75)):
            model.engine.run(slots, part(slot, 0, length, []), None)
        for rows in calls:
            sampling = greedy_rows(len(rows.wanted)) if len(rows.wanted) else None
            result = model.engine.run(slots, rows, sampling, hidden=True, logits=True)
            if sampling is not None:
                assert result.hidden is not None and result.logits is not None
                hidden.append(result.hidden.numpy()[: len(rows.wanted)])
                best = result.logits.numpy()[: len(rows.wanted)].argmax(1).tolist()
                assert [token for token, _ in result.read()] == best
                tokens += best
        found.append((np.concatenate(hidden), tokens))
    (ours, chosen), (theirs, expected) = found
    assert chosen == expected and ours.shape == theirs.shape == (7, CONFIG["hidden_size"])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


# --------------------------------------------------------------------------------------------------- choices


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("without", [(), ("drafted",), ("mask",), ("counts", "drafted"),
                                     ("counts", "drafted", "bias", "mask")])
def test_choices_equal_the_portable_operation(without: tuple[str, ...], cpu: str) -> None:
    given = {name: array for name, array in case(3).items() if name not in without}
    expected, right = sampled(given)
    numbers, ids, logprobs = np.arange(M, dtype=np.int32), np.full(M, -1, np.int32), np.zeros(M, np.float32)
    sampling = SamplingRows(given["params"], given["seed"])
    held = {"logits": given["logits"].copy(), "partial": np.zeros((M, 4), np.float32), "tokens": ids,
            "logprobs": logprobs, "params": sampling.params, "seed": sampling.seed, "wanted_slot": numbers,
            "wanted_position": given["position"] - 1}
    held |= {name: given[name].copy() for name in ("counts", "bias", "mask", "drafted") if name in given}
    call = CCall(**{name: array.ctypes.data for name, array in held.items()}, drafts=4 if "drafted" in given else 0)
    scores = np.zeros(V, np.float32)
    unit("choices.c").fxn(*map(ctypes.c_uint64, (ctypes.addressof(call), V, M, scores.ctypes.data)))
    assert np.array_equal(ids, expected) and np.allclose(logprobs, right, atol=1e-4)
    if "counts" in given:
        added = held["counts"] - given["counts"]
        chosen = np.zeros((M, V), np.int32)
        chosen[numbers, ids] = "drafted" not in given
        assert np.array_equal(added, chosen)
