"""The kernels of training on an NVIDIA GPU, but for plain products: equality with fp32, and time.

    python benchmarks/cuda_training_ops.py [--rows 1024] [--rank 16] [--portable] [--only WORD]

For each kernel in the shapes of an E2B layer and head: the largest error as a share of the largest value, microseconds,
bytes and arithmetic per second, and with ``--portable`` the microseconds of tinygrad's own kernels for it. A graph
holds several runs over inputs of their own, so that starting it counts little. Ends with a non-zero status if an error
is larger than bfloat16 explains. Plain products, few rows among them: ``cuda_matmul.py --rows 256``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.ops import portable
from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.multiply import made
from gemma4_core.ops.portable import capped, cross_entropy, gelu_tanh
from gemma4_core.ops.sliding_blocks import mask_of_blocks
from gemma4_plugins.commands.bench.timing import median_seconds
from gemma4_plugins.devices.cuda.kernels import training as kernels
from gemma4_plugins.devices.cuda.kernels.matmul import matmul, two_products

LIMIT = 1 / 100
"""Half of a bfloat16's last place is 1/512 of its value; sums differ by more where their terms cancel."""
EPS, CAP, WINDOW, VOCABULARY = 1e-6, 30.0, 512, 262144
MATRICES = ((2048, 1536), (256, 1536), (1536, 2048), (6144, 1536), (1536, 6144), (12288, 1536), (1536, 12288))
"""Of layers: outputs and inputs."""
MOST_RUNS, MOST_BYTES = 16, 1 << 29
"""In a graph."""
Form = tuple[int, ...] | tuple[tuple[int, ...], DType]
Work = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Case:
    """A kernel, what it is to give, and the shapes of its inputs, bf16 unless they say otherwise."""

    name: str
    own: Work
    stock: Callable[..., Tensor]
    inputs: tuple[Form, ...]
    operations: int = 0
    mask: Tensor | None = None
    """The first input is 0 where this is false."""

    def draw(self, rng: np.random.Generator, device: str) -> list[Tensor]:
        """Random inputs."""
        drawn = []
        for form in self.inputs:
            shape, dtype = form if isinstance(form[0], tuple) else (form, dtypes.bfloat16)
            drawn.append(upload(rng.standard_normal(shape, np.float32), device, dtype))  # type: ignore[arg-type]
        if self.mask is not None:
            drawn[0] = self.mask.where(drawn[0], 0.0).cast(drawn[0].dtype).contiguous().realize()
        return drawn


def repeated(work: Work, sets: list[list[Tensor]]) -> CapturedGraph:
    """A graph that does the work for each set of inputs, handed over in a row."""
    each = len(sets[0])

    def run(*inputs: Tensor) -> Tensor:
        found = [work(*inputs[first : first + each]) for first in range(0, len(inputs), each)]
        results = [one.contiguous() for one in found if one is not None]
        Tensor.realize(*results)
        return results[0]

    return CapturedGraph(run)


def adapters(rows: int, rank: int) -> Iterator[Case]:
    """Products with a change beside them, and the change's own."""
    for out, inner in MATRICES:
        for form, n, k in (("nt", out, inner), ("nn", inner, out)):
            second = (n, rank) if form == "nt" else (rank, n)
            yield Case(
                f"two products {form} {rows}x{n}x{k}+{rank}",
                lambda a, b, c, d, form=form: two_products(a, b, c, d, form),
                lambda a, b, c, d, form=form: made(None, a, b, form, True) + made(None, c, d, form, True),
                ((rows, k), (out, inner), (rows, rank), second), 2 * rows * n * (k + rank),
            )
    for inner in (256, 1536, 2048, 6144, 12288):
        for form, shape in (("nt", (rank, inner)), ("nn", (inner, rank))):
            yield Case(
                f"thin {form} {rows}x{inner}x{rank}", lambda x, a, form=form: kernels.thin(x, a, 2.0, form),
                lambda x, a, form=form: made(None, x, a, form, True) * 2, ((rows, inner), shape),
                2 * rows * inner * rank,
            )
        for shapes in (((rows, rank), (rows, inner)), ((rows, inner), (rows, rank))):
            yield Case(
                f"gradient of a change {shapes[0][1]}x{shapes[1][1]}", lambda a, b: matmul(a, b, "tn", True),
                lambda a, b: made(None, a, b, "tn", True), shapes, 2 * rows * inner * rank,
            )


def norms(rows: int) -> Iterator[Case]:
    """Norms of the stream and of heads."""
    norm = portable().rms_norm

    def to_x(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return (norm(x, weight, EPS).float() * dy.float()).sum().gradient(x)[0]

    def to_weight(x: Tensor, dy: Tensor) -> Tensor:
        return (dy.float() * norm(x.float(), None, EPS)).sum(0)

    for m, n in ((rows, 1536), (8 * rows, 256)):
        yield Case(f"norm {m}x{n}", lambda x, w: kernels.rms_norm(x, w, EPS), lambda x, w: norm(x, w, EPS),
                   ((m, n), (n,)))
        yield Case(f"norm's gradient {m}x{n}", lambda x, w, dy: kernels.rms_norm_gradient(x, w, EPS, dy), to_x,
                   ((m, n), (n,), (m, n)))
        yield Case(f"norm weight's gradient {m}x{n}", lambda x, dy: kernels.rms_norm_weight_gradient(x, EPS, dy),
                   to_weight, ((m, n), (m, n)))


def attention(rows: int, device: str) -> Iterator[Case]:
    """Softmax of scores, with window, blocks of a band, segments and media."""
    parts = upload(np.sort(np.random.default_rng(1).integers(0, 4, (1, rows)), 1).astype(np.int32), device)
    spots = upload((np.arange(rows)[None] // 200 - rows % 2).astype(np.int32), device)
    patterns: list[tuple[str, Pattern, int | None]] = [
        ("causal", Pattern(), None), ("window", Pattern(WINDOW), None), ("packed", Pattern(None, None, parts), None),
        ("media", Pattern(WINDOW, spots, None), None),
    ]
    if rows >= 3 * WINDOW:
        patterns += [("banded", Pattern(WINDOW), WINDOW), ("packed, banded", Pattern(WINDOW, None, parts), WINDOW)]
    for name, pattern, band in patterns:
        count = -(-rows // WINDOW)
        shape = (1, 1, 8, rows, rows) if band is None else (1, 1, count, 8, band, 2 * band)
        mask = mask_of(pattern, rows)
        mask = mask if band is None else mask_of_blocks(mask, band)
        mask = mask.contiguous().realize()

        def weights(scores: Tensor, mask: Tensor = mask) -> Tensor:
            return mask.where(scores, -1e30).softmax(-1)

        def slopes(weights: Tensor, slope: Tensor) -> Tensor:
            wide, slope = weights.float(), slope.float()
            return wide * (slope - (wide * slope).sum(-1, keepdim=True))

        yield Case(f"softmax, {name}", partial(own_weights, pattern, band), weights, ((shape, dtypes.float32),))
        if pattern.segments is None:
            yield Case(f"softmax's gradient, {name}", partial(own_slopes, pattern, band), slopes, (shape, shape),
                       mask=mask)


def mask_of(pattern: Pattern, rows: int) -> Tensor:
    """What a pattern describes: bool ``[1, 1, 1, T, T]``."""
    positions = Tensor.arange(rows)
    seen = positions.unsqueeze(0) <= positions.unsqueeze(1)
    if pattern.blocks is not None:
        same = pattern.blocks.unsqueeze(2) == pattern.blocks.unsqueeze(1)
        seen = seen | (same & (pattern.blocks.unsqueeze(2) >= 0))
    if pattern.window is not None:
        seen = seen & (positions.unsqueeze(0) > positions.unsqueeze(1) - pattern.window)
    if pattern.segments is not None:
        seen = seen & (pattern.segments.unsqueeze(2) == pattern.segments.unsqueeze(1))
    return seen.reshape(1, 1, 1, rows, rows)


def own_weights(pattern: Pattern, band: int | None, scores: Tensor) -> Tensor | None:
    return kernels.softmax(scores, pattern, band, dtypes.bfloat16)


def own_slopes(pattern: Pattern, band: int | None, weights: Tensor, slope: Tensor) -> Tensor | None:
    return kernels.softmax_gradient(weights, slope, pattern, band)


def mlps(rows: int) -> Iterator[Case]:
    """What stands between the products of a gated MLP."""

    def slopes(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor:
        result = (gelu_tanh(gate) * up).float() * dy.float()
        return result.sum().gradient(gate if which == 0 else up)[0]

    def own(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor | None:
        found = kernels.gated_gradients(gate, up, dy)
        return None if found is None else found[which]

    for width in (6144, 12288):
        shape = rows, width
        yield Case(f"gated {rows}x{width}", kernels.gated, lambda gate, up: gelu_tanh(gate) * up, (shape, shape))
        for which, name in enumerate(("gate", "up")):
            yield Case(f"gated, gradient of {name} {rows}x{width}", partial(own, which), partial(slopes, which),
                       (shape, shape, shape))


def losses(device: str) -> Iterator[Case]:
    """Cross entropy of a piece of rows."""
    rows = 256
    targets = upload(np.random.default_rng(2).integers(-1, VOCABULARY, rows).astype(np.int32), device)
    shape = (rows, VOCABULARY)
    ones = Tensor.ones(rows, device=device).contiguous().realize()

    def own(raw: Tensor) -> Tensor | None:
        found = kernels.cross_entropy(raw, targets, CAP)
        return None if found is None else found[:, 0]

    def gradient(raw: Tensor) -> Tensor | None:
        found = kernels.cross_entropy(raw, targets, CAP)
        return None if found is None else kernels.cross_entropy_gradient(raw, targets, CAP, found, ones)

    def stock(raw: Tensor) -> Tensor:
        return cross_entropy(capped(raw, CAP), targets)

    yield Case("losses", own, stock, (shape,))
    yield Case("losses and their gradient", gradient, lambda raw: stock(raw).sum().gradient(raw)[0], (shape,))


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16, help="a multiple of 16")
    parser.add_argument("--portable", action="store_true", help="time the portable forms too")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    options = parser.parse_args()
    _, device = activate("cuda", DeviceSettings())
    rng, good = np.random.default_rng(0), True

    rows = options.rows
    ready = adapters(rows, options.rank), norms(rows), attention(rows, device), mlps(rows), losses(device)
    for case in (case for cases in ready for case in cases):
        if options.only not in case.name:
            continue
        inputs = case.draw(rng, device)
        found = case.own(*inputs)
        if found is None:
            print(f"{case.name}: not served")
            continue
        truth = case.stock(*(t.float() for t in inputs)).float().numpy()
        moved = sum(int(t.nbytes()) for t in inputs) + truth.size * found.dtype.itemsize
        runs = max(1, min(MOST_RUNS, MOST_BYTES // moved))
        sets = [inputs, *(case.draw(rng, device) for _ in range(runs - 1))]
        flat = [t for one in sets for t in one]
        graphs = [repeated(work, sets) for work in (case.own, case.stock)[: 1 + options.portable]]
        error = float(np.abs(graphs[0](*flat).float().numpy() - truth).max() / np.abs(truth).max())
        times = [median_seconds(partial(graph, *flat), device) / runs for graph in graphs]
        line = f"{case.name}: error {error:.1e}, {times[0] * 1e6:.1f} us, {moved / times[0] / 1e9:.0f} GB/s"
        line += f", {case.operations / times[0] / 1e12:.0f} TFLOP/s" if case.operations else ""
        print(line + "".join(f", portable {time * 1e6:.1f} us" for time in times[1:]), flush=True)
        good = good and error < LIMIT
    print("good" if good else "WRONG")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
