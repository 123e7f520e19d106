"""The products that training takes from a GPU: the kernel on the host, and gradients through any such product."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emulation import compiled
from tinygrad import Tensor, dtypes
from tinygrad.device import CompileError
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp

from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.differentiable import training_operations
from gemma4_core.ops.late import LateBinary, late_binaries
from gemma4_core.ops.multiply import made, multiplied
from gemma4_core.weights import DenseMatrix
from gemma4_plugins.devices.cuda.kernels import dynamic, tiles
from gemma4_plugins.devices.cuda.kernels import matmul as cuda
from gemma4_plugins.devices.cuda.kernels.sources import device_source

random = np.random.default_rng(0)


def bf16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def expected(a: np.ndarray, b: np.ndarray, form: str) -> np.ndarray:
    """In float64; ``b`` as often as ``a`` has more matrices."""
    b = np.repeat(b, len(a) // len(b), 0)
    left = a.swapaxes(1, 2) if form == "tn" else a
    return left @ (b.swapaxes(1, 2) if form == "nt" else b)


TILE_LIST, NAMES = [*tiles.GENERAL, *tiles.HOPPER], ["large", "small", "128", "256"]
TILES = pytest.mark.parametrize("tile", TILE_LIST, ids=NAMES)
SIZES = [(72, 136, 40, 1, 1, False), (8, 16, 200, 6, 3, True), (136, 8, 32, 2, 2, False), (128, 128, 96, 1, 1, True),
         (136, 264, 328, 1, 1, False)]  # fmt: skip
"""Rows, columns, length, matrices, matrices that share one on the right, fp32 results."""
PAIRS = [(72, 136, 200, 16, 1), (130, 24, 72, 112, 3), (64, 128, 64, 8, 1)]
"""Rows, columns, length, length of the second pair, pieces."""


def combinations(forms: Iterable[str], cases: Sequence[Any]) -> pytest.MarkDecorator:
    """Each form with each tile in one case; in all cases where there is time."""
    return pytest.mark.parametrize(("form", "tile", "case"), [
        pytest.param(form, tile, case, marks=[] if c == (3 * f + t) % len(cases) else pytest.mark.slow,
                     id=f"{form}-{NAMES[t]}-{'-'.join(map(str, case))}")
        for f, form in enumerate(forms) for t, tile in enumerate(TILE_LIST) for c, case in enumerate(cases)
    ])


def run(form: str, tile: tiles.Tile, sizes: dict[str, int], *inputs: np.ndarray) -> np.ndarray:
    """The kernel on the host: bf16 bits, or fp32 if ``WIDE``. Inputs are a and b, and perhaps a second pair."""
    sizes = {"K2": 0, "PARTS": 1} | sizes
    name, source = cuda.kernel(sizes, form, tile)
    shared_bytes = dynamic.shared_bytes(name) or 49152
    assert (shared_bytes > 49152) == (tile.warps is None)
    m, n, count = sizes["M"], sizes["N"], len(inputs[0]) * sizes["PARTS"]
    assert name.startswith(f"matmul_{form}_") and all(f"_{size}_" in name for size in (m, n, sizes["K"]))
    out = np.full((count, m, n), 7, np.float32 if sizes["WIDE"] else np.uint16)
    grid = map(ctypes.c_int, (-(-n // tile.columns), -(-m // tile.rows), count, tile.threads))
    buffers = [ctypes.c_void_p(array.ctypes.data) for array in (out, *inputs)]
    compiled(device_source(source)).launch_NAME(*grid, ctypes.c_size_t(shared_bytes), *buffers)
    return out


def operands(form: str, m: int, n: int, k: int, count: int = 1, group: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """bf16 bits of a and b."""
    down = cuda.FORMS[form]
    a = bf16(random.standard_normal((count, k, m) if down[0] else (count, m, k)))
    return a, bf16(random.standard_normal((count // group, k, n) if down[1] else (count // group, n, k)))


@combinations(cuda.FORMS, SIZES)
def test_kernel(form: str, tile: tiles.Tile, case: tuple[int, int, int, int, int, bool]) -> None:
    m, n, k, count, group, floats = case
    a, b = operands(form, m, n, k, count, group)
    out = run(form, tile, {"M": m, "N": n, "K": k, "GROUP": group, "WIDE": int(floats)}, a, b)
    found, truth = (out if floats else wide(out)), expected(wide(a), wide(b), form)
    assert np.abs(found - truth).max() < (1e-4 if floats else 0.008 * np.abs(truth).max())


@combinations(["nt", "nn"], PAIRS)
def test_a_second_pair(form: str, tile: tiles.Tile, case: tuple[int, int, int, int, int]) -> None:
    m, n, k, deep, pieces = case
    first, second = operands(form, m, n, k), operands(form, m, n, deep)
    sizes = {"M": m, "N": n, "K": k, "GROUP": 1, "WIDE": int(pieces > 1), "K2": deep, "PARTS": pieces}
    out = run(form, tile, sizes, *first, *second)
    found = out.astype(np.float64).sum(0) if pieces > 1 else wide(out[0])
    truth = sum(expected(wide(a), wide(b), form)[0] for a, b in (first, second))
    assert np.abs(found - truth).max() < (1e-4 if pieces > 1 else 0.008 * np.abs(truth).max())


@combinations(cuda.FORMS, [(328, 3), (96, 4)])
def test_pieces(form: str, tile: tiles.Tile, case: tuple[int, int]) -> None:
    k, pieces = case
    a, b = operands(form, 72, 136, k)
    out = run(form, tile, {"M": 72, "N": 136, "K": k, "GROUP": 1, "WIDE": 1, "PARTS": pieces}, a, b)
    truth = expected(wide(a), wide(b), form)[0]
    assert len(out) == pieces and np.abs(out.astype(np.float64).sum(0) - truth).max() < 1e-4


@TILES
@pytest.mark.parametrize(
    ("m", "n"),
    [pytest.param(1, 2, marks=pytest.mark.slow), (131, 138), pytest.param(65, 266, marks=pytest.mark.slow)],
)
def test_sizes_that_are_no_multiple_of_8(tile: tiles.Tile, m: int, n: int) -> None:
    a, b = bf16(random.standard_normal((1, m, 72))), bf16(random.standard_normal((1, n, 72)))
    out = run("nt", tile, {"M": m, "N": n, "K": 72, "GROUP": 1, "WIDE": 0}, a, b)
    truth = expected(wide(a), wide(b), "nt")
    assert np.abs(wide(out) - truth).max() < 0.008 * np.abs(truth).max()


class Card(NamedTuple):
    """Stands in for what tinygrad compiles for."""

    arch: str


def programs(found: Tensor) -> list[UOp]:
    return [u for u in found.uop.toposort() if u.op is Ops.PROGRAM]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100"])
@pytest.mark.parametrize("k", [504, 512])
@pytest.mark.parametrize("compiles", [True, False])
def test_which_kernel_a_card_gets(monkeypatch: pytest.MonkeyPatch, arch: str, k: int, compiles: bool) -> None:
    monkeypatch.setattr(cuda, "usable", lambda device: True)
    monkeypatch.setattr(cuda, "target_of", lambda device: Card(arch))
    monkeypatch.setattr(cuda.dynamic, "compiled", lambda device, source: b"code" if compiles else None)
    a, b = (Tensor.empty(rows, k, dtype=dtypes.bfloat16, device="NULL") for rows in (1024, 1152))
    with Context(DEV="NULL"):
        found = cuda.matmul(a, b, "nt")
    assert found is not None
    (program,) = programs(found)
    hopper = arch == "sm_90" and k >= tiles.HOPPER_LEAST_K and compiles
    assert [u.arg for u in program.src if u.op is Ops.BINARY] == [b"code"] * hopper
    assert ("wide" in program.arg.name) == hopper
    assert program.arg.global_size == (9, 8, 1)


def test_programs_are_loaded_with_the_memory_that_their_names_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    class Program:
        def __init__(self, dev: object, obj: object, smem: int = 0) -> None:
            loaded.append(smem)

    monkeypatch.setattr("tinygrad.runtime.ops_cuda.CUDAProgram", Program)
    device = SimpleNamespace(runtime_t=Program)
    dynamic.load_with_memory(device)
    for name in (dynamic.named("matmul", 131072), "matmul_nt_128"):
        device.runtime_t(device, SimpleNamespace(name=name))
    assert loaded == [131072, 0]
    other = SimpleNamespace(runtime_t=object)
    dynamic.load_with_memory(other)
    assert other.runtime_t is object


def test_a_compiler_without_the_features_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiler(NamedTuple):
        refused: str

        def compile_cached(self, source: str) -> bytes:
            if self.refused in ("all", source):
                raise CompileError("sm_90a")
            return b"code"

    monkeypatch.setattr(dynamic, "Device", {"CUDA": SimpleNamespace(runtime_t=object)})
    monkeypatch.setattr(dynamic.launch, "features", lambda: "a")
    for refused, expected in (("all", None), ("", b"code"), ("wrong", "raises")):
        monkeypatch.setattr(dynamic.launch, "compiler", lambda features, refused=refused: Compiler(refused))
        dynamic.features_known.cache_clear()
        for one in (dynamic.prepared, dynamic.machine_code):
            one.cache_clear()
        if expected == "raises":  # a mistake of ours is not taken for that
            with pytest.raises(CompileError):
                dynamic.compiled("CUDA", "wrong")
        else:
            assert dynamic.compiled("CUDA", "source") == expected
            with late_binaries():
                late = dynamic.compiled("CUDA", "source")
            assert late is None if expected is None else isinstance(late, LateBinary) and late() == expected
    dynamic.features_known.cache_clear()
    for one in (dynamic.prepared, dynamic.machine_code):
        one.cache_clear()


def test_tiles_and_pieces_fill_a_card() -> None:
    large, small = tiles.GENERAL
    assert tiles.chosen(1024, 6144, 1536, 1, False) == (large, 1)
    assert tiles.chosen(1024, 256, 256, 1, False) == (small, 1)
    for m, n, k, hopper in [(192, 192, 30720, False), (256, 1536, 12288, True), (256, 1536, 12288, False)]:
        tile, pieces = tiles.chosen(m, n, k, 1, hopper)
        assert pieces > 1 and tile.blocks(m, n) * pieces > tiles.FULL_CARD / 2 and k >= pieces * tiles.LEAST_DEPTH
        assert tiles.chosen(m, n, k, 2, hopper)[1] == 1


def test_tiles_of_hopper() -> None:
    few, many = tiles.HOPPER
    assert tiles.chosen(2560, 768, 1152, 1, True) == (few, 1)  # 120 tiles instead of 60
    assert tiles.chosen(2560, 4304, 1152, 1, True) == tiles.chosen(2560, 1152, 4304, 1, True) == (many, 1)
    assert tiles.chosen(1024, 1536, 6144, 1, True)[1] == 1  # 96 tiles, whose pieces cost more to add than they bring


def on_host(a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor | None:
    """Stands in for a device's product: serves what the kernel does."""
    if a.shape[-1] % 8 or b.shape[-1] % 8:
        return None
    return made(None, a, b, form, wide)


def gradients(matmul: object, form: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    a, b = (Tensor(rng.standard_normal(shape, np.float32)).realize() for shape in shapes)
    found = multiplied(matmul, a, b, form, True)  # type: ignore[arg-type]
    if found is None:
        right = b if b.ndim == a.ndim else b.unsqueeze(-3)
        found = a @ (right.transpose(-1, -2) if form == "nt" else right)
    weight = Tensor(rng.standard_normal(found.shape, np.float32))
    slopes = (found * weight).sum().gradient(a, b)
    return [found.numpy(), *(g.numpy() for g in slopes)]


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("nt", ((16, 8), (24, 8))), ("nn", ((16, 24), (24, 8))), ("nt", ((2, 1, 4, 16, 8), (2, 1, 24, 8))),
        ("nn", ((2, 2, 2, 16, 24), (2, 2, 24, 8))), ("nt", ((12, 8), (20, 8))), ("nn", ((12, 24), (24, 40))),
    ],
)
def test_gradients(cpu: str, form: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    assert on_host(Tensor.zeros(*shapes[0]), Tensor.zeros(*shapes[1]), form) is not None
    for found, truth in zip(gradients(on_host, form, shapes), gradients(None, form, shapes), strict=True):
        assert np.abs(truth).max() > 0 and np.abs(found - truth).max() < 1e-5 * np.abs(truth).max()


def test_operations_over_a_device(cpu: str) -> None:
    rng = np.random.default_rng(2)
    draw = lambda *shape: Tensor(rng.standard_normal(shape, np.float32)).realize()  # noqa: E731
    x, gate, up, down = draw(2, 8, 16), draw(24, 16), draw(24, 16), draw(16, 24)
    q, k, v = draw(2, 8, 4, 16), draw(2, 2, 8, 16), draw(2, 2, 8, 16)
    mask = Tensor(np.tril(np.ones((8, 8), np.bool_)))
    results = []
    for matmul in (None, on_host):
        operations = training_operations(matmul)
        mixed = operations.gated_mlp(x, *(DenseMatrix(w, dtypes.float32) for w in (gate, up, down)))
        attended = operations.attention(q, KeyValues(k, v, mask))
        loss = (mixed.square().sum() + attended.square().sum()) / math.prod(x.shape)
        slopes = loss.gradient(x, gate, up, down, q, k, v)
        results.append([loss.numpy(), *(g.numpy() for g in slopes)])
    for found, truth in zip(*results, strict=True):
        assert np.abs(truth).max() > 0 and np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
