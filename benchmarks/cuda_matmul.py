"""The products of training on an NVIDIA GPU: equality with fp32, and speed, beside tinygrad's own kernel.

    python benchmarks/cuda_matmul.py [--rows 1024] [--portable]

For each product of an E2B layer, forward ("nt") and backward ("nn", "tn"), and of its attention: the largest error as a
share of the largest value, then TFLOP/s of the kernel and of the portable form. Ends with a non-zero status if an error
is larger than bfloat16 explains.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import numpy as np
from tinygrad import dtypes

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.multiply import made
from gemma4_plugins.commands.bench.timing import median_seconds
from gemma4_plugins.devices.cuda.kernels.matmul import matmul

LIMIT = 1 / 128
"""Half of a bfloat16's last place is 1/512 of its value; sums differ by more where their terms cancel."""


def shapes(rows: int) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Form, a and b."""
    found: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for width, inner in ((2048, 1536), (256, 1536), (6144, 1536), (1536, 6144), (1536, 12288)):
        found += [
            ("nt", (rows, inner), (width, inner)), ("nn", (rows, width), (width, inner)),
            ("tn", (rows, width), (rows, inner)),
        ]
    return [
        *found, ("nt", (1, 1, 8, rows, 256), (1, 1, rows, 256)), ("nn", (1, 1, 8, rows, rows), (1, 1, rows, 256)),
        ("tn", (1, 1, 8, rows, rows), (1, 1, 8, rows, 256)), ("tn", (30720, 192), (30720, 192)),
    ]


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--portable", action="store_true", help="time tinygrad's own kernels too")
    options = parser.parse_args()
    _, device = activate("cuda", DeviceSettings())
    rng, good = np.random.default_rng(0), True
    for form, first, second in shapes(options.rows):
        draw = lambda shape: upload(rng.standard_normal(shape, np.float32), device, dtypes.bfloat16)  # noqa: E731
        a, b = draw(first), draw(second)
        own = CapturedGraph(lambda a, b, form=form: made(matmul, a, b, form).realize())
        plain = CapturedGraph(lambda a, b, form=form: made(None, a, b, form).contiguous().realize())
        found, truth = own(a, b).float().numpy(), made(None, a.float(), b.float(), form, True).numpy()
        error = float(np.abs(found - truth).max() / np.abs(truth).max())
        inner = first[-2] if form == "tn" else first[-1]
        work = 2 * truth.size * inner / 1e12
        speeds = [work / median_seconds(partial(graph, a, b), device) for graph in (own, plain)[: 1 + options.portable]]
        line = f"{form} {list(first)} {list(second)}: error {error:.1e}, {speeds[0]:.0f} TFLOP/s"
        print(line + "".join(f", portable {speed:.0f}" for speed in speeds[1:]), flush=True)
        good = good and error < LIMIT
    print("good" if good else "WRONG")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
