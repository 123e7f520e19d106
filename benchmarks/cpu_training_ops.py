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

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate, machine
from gemma4_core.ops import portable
from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.multiply import made
from gemma4_core.ops.portable import capped, cross_entropy, gelu_tanh
from gemma4_plugins.devices.cpu.kernels.training import fused, products

TYPES = {"bf16": (dtypes.bfloat16, 0.01), "fp32": (dtypes.float32, 2e-5)}
EPS, CAP, WINDOW, WORDS = 1e-6, 30.0, 512, 65536
MATRICES = ((2048, 1536), (256, 1536), (6144, 1536), (1536, 6144))
"""Of layers: outputs and inputs."""
Work = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Case:
    """A kernel, what it is to give, and the shapes of its inputs."""

    name: str
    own: Work
    stock: Callable[..., Tensor]
    inputs: tuple[tuple[int, ...], ...]
    operations: int = 0
    form: str = ""
    """Of a plain product."""
    wide: bool = False
    """Whether the first input is fp32 whatever the others are."""


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


def norms(rows: int) -> Iterator[Case]:
    """Norms of the stream and of heads."""
    norm = portable().rms_norm

    def to_x(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return (norm(x, weight, EPS).float() * dy.float()).sum().gradient(x)[0]

    def to_weight(x: Tensor, dy: Tensor) -> Tensor:
        return (dy.float() * norm(x.float(), None, EPS)).sum(0)

    for m, n in ((rows, 1536), (8 * rows, 256)):
        yield Case(f"norm {m}x{n}", lambda x, w: fused.rms_norm(x, w, EPS), lambda x, w: norm(x, w, EPS),
                   ((m, n), (n,)))  # fmt: skip
        yield Case(f"norm's gradient {m}x{n}", lambda x, w, dy: fused.rms_norm_gradient(x, w, EPS, dy), to_x,
                   ((m, n), (n,), (m, n)))  # fmt: skip
        yield Case(f"norm weight's gradient {m}x{n}", lambda x, dy: fused.rms_norm_weight_gradient(x, EPS, dy),
                   to_weight, ((m, n), (m, n)))


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
                   weights, (shape,), wide=True)  # fmt: skip
        yield Case(f"softmax and its gradient, {name}", own_slopes, slopes, (shape, shape), wide=True)


def mlps(rows: int) -> Iterator[Case]:
    """What stands between the products of a gated MLP."""

    def stock(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor:
        return ((gelu_tanh(gate) * up).float() * dy.float()).sum().gradient((gate, up)[which])[0]

    def own(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor | None:
        found = fused.gated_gradients(gate, up, dy)
        return None if found is None else found[which]

    shape = rows, 6144
    yield Case(f"gated {rows}x6144", fused.gated, lambda gate, up: gelu_tanh(gate) * up, (shape, shape))
    for which, name in enumerate(("gate", "up")):
        yield Case(f"gated, gradient of {name}", partial(own, which), partial(stock, which), (shape, shape, shape))


def losses(rows: int, device: str) -> Iterator[Case]:
    """Cross entropy of some rows."""
    targets = upload(np.random.default_rng(2).integers(-1, WORDS, rows).astype(np.int32), device)
    ones = Tensor.ones(rows, device=device).contiguous().realize()

    def own(raw: Tensor) -> Tensor | None:
        found = fused.cross_entropy(raw, targets, CAP)
        return None if found is None else found[:, 0]

    def gradient(raw: Tensor) -> Tensor | None:
        found = fused.cross_entropy(raw, targets, CAP)
        return None if found is None else fused.cross_entropy_gradient(raw, targets, CAP, found, ones)

    def stock(raw: Tensor) -> Tensor:
        return cross_entropy(capped(raw, CAP), targets)

    yield Case("losses", own, stock, ((rows, WORDS),))
    yield Case("losses and their gradient", gradient, lambda raw: stock(raw).sum().gradient(raw)[0], ((rows, WORDS),))


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

    ready = adapted(rows, options.rank), norms(rows), attention(rows, dtype), mlps(rows), losses(rows, device)
    for case in (case for cases in ready for case in cases):
        if options.only not in case.name:
            continue
        kinds = [dtypes.float32 if case.wide and not at else dtype for at in range(len(case.inputs))]
        pairs = zip(case.inputs, kinds, strict=True)
        inputs = [upload(rng.standard_normal(shape, np.float32), device, kind) for shape, kind in pairs]
        if case.own(*inputs) is None:
            print(f"{case.name}: not served")
            continue
        truth = case.stock(*(t.float() for t in inputs)).float().numpy()
        graphs = [CapturedGraph(one_result(work)) for work in (case.own, case.stock)[: 1 + options.portable]]
        found = graphs[0](*inputs)
        error = float(np.abs(found.float().numpy() - truth).max() / np.abs(truth).max())
        moved = sum(int(t.nbytes()) for t in inputs) + int(found.nbytes())
        times = [timed(partial(graph, *inputs)) for graph in graphs]
        wall = times[0].wall
        line = f"{case.name}: error {error:.1e}, {times[0]}, {moved / wall / 1e9:.1f} GB/s"
        line += f", {case.operations / wall / 1e9:.0f} GFLOP/s" if case.operations else ""
        line += "".join(f", portable {one}" for one in times[1:])
        theirs = with_torch(case, options.dtype) if options.torch else None
        print(line + ("" if theirs is None else f", torch {theirs}"), flush=True)
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
