"""The kernels of training on this machine's processor: equality with fp32, and time.

    python benchmarks/cpu_training_ops.py [--rows 256] [--rank 16] [--dtype fp32] [--portable] [--torch] [--only WORD]

For each kernel in the shapes of an E2B layer and head: the largest error as a share of the largest value, microseconds
on a clock and of the cores together (which other work on a shared machine changes less), bytes and arithmetic per
second, with ``--portable`` the microseconds of tinygrad's own kernels for it, and with ``--torch``, where that is
installed, those of its plain products. Ends with a non-zero status if an error is larger than the numbers' type
explains.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from training_cases import Case, Work, error_of, losses, mlps, norms

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate, machine
from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.graphs import CapturedGraph
from gemma4_core.ops.multiply import made
from gemma4_plugins.devices.cpu.kernels.training import fused, products

TYPES = {"bf16": (dtypes.bfloat16, 0.01), "fp32": (dtypes.float32, 2e-5)}
WORDS = 65536
MATRICES = ((2048, 1536), (256, 1536), (6144, 1536), (1536, 6144))
"""Of layers: outputs and inputs."""


def adapted(rows: int, rank: int) -> Iterator[Case]:
    """Products, those with a change beside them, and the change's own."""
    for out, inner in MATRICES:
        weight = out, inner
        shapes = {"nt": ((rows, inner), weight), "nn": ((rows, out), weight), "tn": ((rows, out), (rows, inner))}
        for form, given in shapes.items():
            yield Case(
                f"product {form} {rows}x{out}x{inner}", lambda a, b, form=form: products.matmul(a, b, form),
                lambda a, b, form=form: made(None, a, b, form), given, 2 * rows * out * inner, form,
            )  # fmt: skip
        yield Case(
            f"two products {rows}x{out}x{inner}+{rank}", lambda *given: products.two_products(*given, "nt"),
            lambda a, b, c, d: made(None, a, b, "nt", True) + made(None, c, d, "nt", True),
            ((rows, inner), (out, inner), (rows, rank), (out, rank)), 2 * rows * out * (inner + rank),
        )
        yield Case(
            f"thin {rows}x{rank}x{inner}", lambda x, a: products.thin(x, a, 2.0, "nt"),
            lambda x, a: made(None, x, a, "nt", True) * 2, ((rows, inner), (rank, inner)), 2 * rows * inner * rank,
        )
        for many in (((rows, rank), (rows, inner)), ((rows, out), (rows, rank))):
            yield Case(
                f"gradient of a change {many[0][1]}x{many[1][1]}", lambda a, b: products.matmul(a, b, "tn", True),
                lambda a, b: made(None, a, b, "tn", True), many, 2 * rows * many[0][1] * many[1][1],
            )


def attention(rows: int, dtype: DType) -> Iterator[Case]:
    """Softmax of scores and its gradient."""
    shape = 1, 1, 8, rows, rows
    positions = np.arange(rows)
    for name, window in (("causal", None), ("window", rows // 2)):
        seen = positions[None] <= positions[:, None]
        seen = seen if window is None else seen & (positions[None] > positions[:, None] - window)
        mask, pattern = Tensor(seen).realize(), Pattern(window)

        def weights(scores: Tensor, mask: Tensor = mask) -> Tensor:
            return mask.where(scores, -1e30).softmax(-1).cast(dtype)

        def slopes(scores: Tensor, slope: Tensor, mask: Tensor = mask) -> Tensor:
            wide, slope = weights(scores, mask).float().contiguous(), slope.float()
            return wide * (slope - (wide * slope).sum(-1, keepdim=True))

        def own_slopes(scores: Tensor, slope: Tensor, pattern: Pattern = pattern) -> Tensor | None:
            found = fused.softmax(scores, pattern, None, dtype)
            return None if found is None else fused.softmax_gradient(found, slope, pattern, None)

        yield Case(f"softmax, {name}", lambda scores, pattern=pattern: fused.softmax(scores, pattern, None, dtype),
                   weights, ((shape, dtypes.float32),))  # fmt: skip
        yield Case(f"softmax and its gradient, {name}", own_slopes, slopes,
                   ((shape, dtypes.float32), shape))


@dataclass(frozen=True)
class Time:
    """Seconds of a run on a clock, and of all cores together."""

    wall: float
    cores: float

    def __str__(self) -> str:
        return f"{self.wall * 1e6:.0f} us ({self.cores * 1e6:.0f} of cores)"


def timed(work: Callable[[], object], runs: int = 10) -> Time:
    """The median run; the cores' share is the mean."""
    work()
    cores, walls = time.process_time(), []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        walls.append(time.perf_counter() - began)
    return Time(float(np.median(walls)), (time.process_time() - cores) / runs)


def with_torch(case: Case, dtype: str) -> Time | None:
    """Torch's time for a plain product on as many threads."""
    if not case.form:
        return None
    torch = importlib.import_module("torch")
    torch.set_num_threads(machine.thread_count())
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b = (torch.randn(*shape).to(kind) for shape in case.inputs)
    a, b = a.T if case.form == "tn" else a, b.T if case.form == "nt" else b
    return timed(lambda: torch.matmul(a, b))


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=sorted(TYPES), default="bf16")
    parser.add_argument("--portable", action="store_true", help="time the portable forms too")
    parser.add_argument("--torch", action="store_true", help="time torch's products too")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    options = parser.parse_args()
    _, device = activate("cpu", DeviceSettings())
    rng, good, rows = np.random.default_rng(0), True, options.rows
    dtype, limit = TYPES[options.dtype]

    kernels = fused.FUSED
    ready = (adapted(rows, options.rank), norms(rows, kernels), attention(rows, dtype), mlps(rows, (6144,), kernels),
             losses(rows, WORDS, device, kernels))
    for case in (case for cases in ready for case in cases):
        if options.only not in case.name:
            continue
        inputs = case.draw(rng, device, dtype)
        if case.own(*inputs) is None:
            print(f"{case.name}: not served")
            continue
        truth = case.truth(inputs)
        graphs = [CapturedGraph(one_result(work)) for work in (case.own, case.stock)[: 1 + options.portable]]
        found = graphs[0](*inputs)
        error = error_of(found, truth)
        moved = sum(int(t.nbytes()) for t in inputs) + int(found.nbytes())
        times = [timed(partial(graph, *inputs)) for graph in graphs]
        theirs = with_torch(case, options.dtype) if options.torch else None
        others = [("portable", one) for one in times[1:]] + ([] if theirs is None else [("torch", theirs)])
        print(case.line(error, moved, times[0].wall, others, times[0]), flush=True)
        good = good and error < limit
    print("good" if good else "WRONG")
    sys.exit(0 if good else 1)


def one_result(work: Work) -> Callable[..., Tensor]:
    """What a graph runs."""

    def run(*inputs: Tensor) -> Tensor:
        found = work(*inputs)
        assert found is not None
        return found.contiguous().realize()

    return run


if __name__ == "__main__":
    main()
