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
from collections.abc import Iterator
from functools import partial

import numpy as np
from tinygrad import Tensor, dtypes
from training_cases import Case, Work, error_of, losses, microseconds, mlps, norms

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.multiply import made
from gemma4_core.ops.sliding_blocks import mask_of_blocks
from gemma4_plugins.commands.bench.timing import median_seconds
from gemma4_plugins.devices.cuda.kernels import training as kernels
from gemma4_plugins.devices.cuda.kernels.matmul import matmul, two_products

LIMIT = 1 / 100
"""Half of a bfloat16's last place is 1/512 of its value; sums differ by more where their terms cancel."""
WINDOW, VOCABULARY, LOSS_ROWS = 512, 262144, 256
MATRICES = ((2048, 1536), (256, 1536), (1536, 2048), (6144, 1536), (1536, 6144), (12288, 1536), (1536, 12288))
"""Of layers: outputs and inputs."""
MOST_RUNS, MOST_BYTES = 16, 1 << 29
"""In a graph."""


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
    fused, dtype = kernels.FUSED, dtypes.bfloat16
    ready = (adapters(rows, options.rank), norms(rows, fused), attention(rows, device),
             mlps(rows, (6144, 12288), fused), losses(LOSS_ROWS, VOCABULARY, device, fused))
    for case in (case for cases in ready for case in cases):
        if options.only not in case.name:
            continue
        inputs = case.draw(rng, device, dtype)
        found = case.own(*inputs)
        if found is None:
            print(f"{case.name}: not served")
            continue
        truth = case.truth(inputs)
        moved = sum(int(t.nbytes()) for t in inputs) + truth.size * found.dtype.itemsize
        runs = max(1, min(MOST_RUNS, MOST_BYTES // moved))
        sets = [inputs, *(case.draw(rng, device, dtype) for _ in range(runs - 1))]
        flat = [t for one in sets for t in one]
        graphs = [repeated(work, sets) for work in (case.own, case.stock)[: 1 + options.portable]]
        error = error_of(graphs[0](*flat), truth)
        times = [median_seconds(partial(graph, *flat), device) / runs for graph in graphs]
        others = [("portable", microseconds(time)) for time in times[1:]]
        print(case.line(error, moved, times[0], others), flush=True)
        good = good and error < LIMIT
    print("good" if good else "WRONG")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
