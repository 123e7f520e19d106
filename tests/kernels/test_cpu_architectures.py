"""The text kernels compiled for lesser processors and run on this one; for ARM's they are compiled only."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cross_compiling import assembly
from wide_model import CONFIG, IDS

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.quantize import quantize
from gemma4_plugins.devices.cpu.kernels import build, text
from gemma4_plugins.devices.native import loader

LESSER = ("haswell", "nehalem") if platform.machine() in ("x86_64", "AMD64") else ("generic",)
LONG = {"intermediate_size": 8256}
"""Rows longer than a run of sums of int8 products."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("architectures")
    folder = write_random_checkpoint(root / "model", CONFIG | LONG, 3)
    return {"bf16": folder, "fp32": folder, "int8": quantize(folder, root / "int8", "int8")}


@pytest.fixture
def compiled_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Kernels are loaded anew, before and after."""
    build.load.cache_clear()
    yield monkeypatch
    build.load.cache_clear()


def outputs(folder: Path, form: str) -> tuple[np.ndarray, list[float]]:
    """Logits of a prompt's positions, and log probabilities of tokens one by one."""
    model = load_pretrained(folder, device="cpu", **({"dtype": "float32"} if form == "fp32" else {}))
    cache = model.make_cache()
    logits = model.forward_ids([IDS[:150]], cache=cache)[0].numpy()[0]
    # given tokens, so that a near tie does not lead elsewhere
    steps = [model.forward_ids([IDS[at : at + 1]], cache=cache)[0].numpy()[0, -1] for at in range(150, 156)]
    tokens = model.stream_generate(prompt_tokens=IDS[:40], max_new_tokens=3, stop_ids=())
    return np.concatenate([logits, np.stack(steps)]), [token.logprob for token in tokens]


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize(
    ("architecture", "form"),
    [pytest.param(one, form, marks=[] if (n, form) == (0, "bf16") else pytest.mark.slow)
     for n, one in enumerate(LESSER) for form in ("bf16", "int8", "fp32")],
)  # fmt: skip
def test_same_results(
    folders: dict[str, Path], compiled_for: pytest.MonkeyPatch, form: str, architecture: str
) -> None:
    ours, chances = outputs(folders[form], form)
    build.load.cache_clear()
    original, asked = loader.ClangCompiler, []

    def lesser(arch: list[str]) -> loader.ClangCompiler:
        asked.append(arch)
        return original([arch[0], architecture])

    compiled_for.setattr(loader, "ClangCompiler", lesser)
    theirs, other_chances = outputs(folders[form], form)
    assert asked
    distance = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours - ours.mean()))
    assert distance < (1e-5 if form == "fp32" else 0.03)
    assert other_chances == pytest.approx(chances, abs=1e-4 if form == "fp32" else 0.05)


def entry(name: str, *defines: str) -> Any:
    """A function of a file beside this one, which begins and ends the unit of the text kernels."""
    file = str(Path(__file__).parents[1] / name)
    return build.load((file, *text.SOURCES, file), ("YIELD_SYSCALL", *defines)).fxn


@pytest.mark.parametrize("count", [5, 64, 300, 12288 + 17])
@pytest.mark.parametrize("tuning", [(), ("STREAMS 2", "AHEAD 4096")], ids=["one row", "two rows"])
@pytest.mark.parametrize("architecture", ("native", *LESSER))
def test_sums_of_products(
    cpu: str, compiled_for: pytest.MonkeyPatch, architecture: str, tuning: tuple[str, ...], count: int
) -> None:
    original = loader.ClangCompiler
    compiled_for.setattr(loader, "ClangCompiler", lambda arch: original([arch[0], architecture]))
    product, random = entry("row_product.c", *tuning), np.random.default_rng(count)
    noise = random.standard_normal(count).astype(np.float32)
    whole = random.integers(-127, 128, (3, count)).astype(np.int8)
    whole[1:] = np.array([[127], [-128]], np.int8)  # with ones, the largest sums that there are
    floats = random.standard_normal((3, count)).astype(np.float32)
    bf16 = (floats.view(np.uint32) >> 16).astype(np.uint16)
    scales = np.array([1, 0.5, 2], np.float32)
    cases = [(2, whole, whole, x) for x in (noise, np.ones_like(noise))] + [(0, floats, floats, noise)]
    cases += [(1, bf16, (bf16.astype(np.uint32) << 16).view(np.float32), noise)]
    for kind, w, values, x in cases:
        scratch, out = np.zeros(count + 64, np.float32), np.full(4, 7, np.float32)
        held = (w.ctypes.data, scales.ctypes.data, kind, 3, count, x.ctypes.data, scratch.ctypes.data, out.ctypes.data)
        product(*map(ctypes.c_uint64, held))
        parts = values.astype(np.float64) * x * (scales[:, None] if kind == 2 else 1)
        assert (np.abs(out[:3] - parts.sum(1)) <= (5e-5 if kind == 2 else 1e-6) * np.abs(parts).sum(1)).all()
        assert out[3] == 7


@pytest.mark.parametrize("threads", [1, 2, 3, 16, 100])
def test_every_row_is_claimed_once(cpu: str, threads: int) -> None:
    claims = entry("claims.c")
    out = np.zeros(3, np.int64)
    claims(*map(ctypes.c_uint64, (0, 22, threads, out.ctypes.data)))
    assert out[0] == 0
    for rows in (1, 2, 7, 255, 256, 1536, 12288):
        for least in (1, 22, 129, 5000):
            out = np.zeros(2 * rows + 3, np.int64)
            claims(*map(ctypes.c_uint64, (rows, least, threads, out.ctypes.data)))
            blocks = out[1 : 1 + 2 * out[0]].reshape(-1, 2)
            assert blocks[0, 0] == 0 and blocks[-1, 1] == rows and np.array_equal(blocks[1:, 0], blocks[:-1, 1])
            sizes = blocks[:, 1] - blocks[:, 0]
            assert (sizes > 0).all() and (sizes[:-1] >= least).all() and (np.diff(sizes) <= 0).all()
            assert sizes[0] <= max(least, -(-3 * rows // (4 * threads)))


def test_arm(cpu: str) -> None:
    source = "".join((build.HERE / name).read_text() for name in text.SOURCES)
    found = assembly(source, "aarch64", "-ffixed-x18")
    assert re.search(r"fmla\s+v\d+\.4s", found) and re.search(r"smlal2?\s+v\d+\.4s", found)
