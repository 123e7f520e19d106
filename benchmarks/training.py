"""Speed and memory of a whole fine-tuning step on a GPU, with random weights made there.

    python benchmarks/training.py [--size E2B] [--lengths 1024 4096] [--optimizer adamw] [--compact] [--checkpointing]

Prints for each length the seconds until the second step is done (its graph is captured in the first), then tokens per
second, the median of the later steps, and the device's memory in buffers and in total. A step is loss, gradients of
every weight, clipping of their norm to 1, and the update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
from cuda_models import random_model
from tinygrad import GlobalCounters

from gemma4_core import GemmaTrainingBatch, build_optimizer, train_step
from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.ops import portable
from gemma4_plugins.devices.cuda.kernels import operations


def main() -> None:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="E2B")
    parser.add_argument("--layers", type=int, help="only this many of the first layers")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--compact", action="store_true", help="adamw without masters, its slots in bfloat16")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    backend, _ = activate("cuda", DeviceSettings())
    assert backend.free_memory is not None
    before = backend.free_memory()
    model = random_model(options.size, replace(portable(), matmul=operations().matmul), options.layers)
    compact: dict[str, Any] = {"compact": True} if options.compact else {}
    optimizer = build_optimizer(model, options.optimizer, lr=1e-5, **compact)
    print(optimizer.summary, flush=True)
    rng = np.random.default_rng(0)
    for length in options.lengths:
        times = []
        for _ in range(options.steps):
            ids = rng.integers(10, model.config.text_config.vocab_size, (1, length), dtype=np.int32)
            began = time.perf_counter()
            batch = GemmaTrainingBatch(ids)
            loss = train_step(model, optimizer, batch, max_norm=1.0, checkpointing=options.checkpointing)
            value = loss.item()
            times.append(time.perf_counter() - began)
        used, live = (before or 0) - (backend.free_memory() or 0), GlobalCounters.mem_used
        seconds = statistics.median(times[2:])
        print(
            f"{options.size} {length} tokens: ready after {sum(times[:2]):.1f} s, {length / seconds:.0f} tok/s "
            f"({seconds * 1e3:.0f} ms), {live / 1e9:.1f} GB in buffers, {used / 1e9:.1f} taken, loss {value:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
