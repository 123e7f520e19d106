"""Many tokens through the CUDA decode step, one after the other, and what they leave behind.

    python benchmarks/cuda_soak.py [--models E2B E2B@int8 E2B:10] [--tokens 20000] [--portable]

Samples tokens as generation does, steps queued ahead, until the context is full. Then the same tokens run as a prompt
through the kernels of single operations into a second cache, or with ``--portable`` through the portable graph, and
keys and values of both caches are compared by quarters of the positions, and the logits of one more step on each.
Random weights made on the GPU. Ends with a non-zero status if the distance in the last quarter exceeds that in the
first by more than half.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from typing import Any

import numpy as np
from cuda_check import model_of, relative, step_logits

from gemma4_core.model.cache import Storage
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.sampling import SamplingState
from gemma4_core.ops.steps import Chunk
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels import prefill as cuda_prefill
from gemma4_plugins.devices.cuda.kernels import step as cuda_step


def drawn(model: GemmaModel, step: cuda_step.CudaStep, count: int, every: int) -> tuple[list[int], list[float]]:
    """Tokens after token 2, at temperature 1, and the seconds that each ``every`` of them took."""
    state = SamplingState(
        upload(np.array([1, 64, 0.95, 0, 1], np.float32), launch.DEVICE),
        upload(np.array([7], np.uint32), launch.DEVICE),
        upload(np.zeros((1, model.engine.vocab), np.bool_), launch.DEVICE),
    )
    token, tokens, seconds = upload(np.array([[2]], np.int32), launch.DEVICE), [2], []
    waiting: deque[Any] = deque()
    began = time.perf_counter()
    for position in range(count):
        issued = step(token, position, state)
        token = issued[0]
        waiting.append(issued)
        if len(waiting) > step.ahead:
            tokens.append(waiting.popleft().read()[0])
        if (position + 1) % every == 0:
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    tokens += [issued.read()[0] for issued in waiting]
    return tokens, seconds


def as_prompt(model: GemmaModel, storage: Storage, tokens: list[int], portably: bool) -> None:
    """Fill a cache with these tokens' keys and values, an operation at a time."""
    step = None if portably else cuda_prefill.prefill(model.engine.view, storage)
    for start in range(0, len(tokens), model.chunk):
        chunk = Chunk(np.array([tokens[start : start + model.chunk]], np.int32))
        if step is not None:
            step(chunk, start, None, False, False)
        else:
            model.engine.append_portable(storage, start, chunk, None, False)


def distances(model: GemmaModel, ours: Storage, theirs: Storage, count: int) -> list[float]:
    """The worst relative distance over layers that hold all positions, quarter by quarter."""
    worst = [0.0] * 4
    for layer, a, b in zip(model.text.config.layers, ours.layers, theirs.layers, strict=True):
        if a is None or b is None or layer.window is not None:
            continue
        for quarter in range(4):
            here = slice(count * quarter // 4, count * (quarter + 1) // 4)
            x, y = (t[:, :, :, here].float().numpy() for t in (a, b))
            worst[quarter] = max(worst[quarter], relative(x, y))
    return worst


def soak(name: str, count: int, portably: bool) -> bool:
    """Check one model. Returns whether nothing drifts."""
    model = model_of(name)
    ours, theirs = (model.pool.take(model, 1, count + 8) for _ in range(2))
    steps = []
    for storage in (ours, theirs):
        step = cuda_step.decode_step(model.engine.view, storage, True)
        assert isinstance(step, cuda_step.CudaStep), "the kernel does not serve this model here"
        steps.append(step)
    every = max(1, min(1000, count // 4))
    tokens, seconds = drawn(model, steps[0], count, every)
    began = time.perf_counter()
    as_prompt(model, theirs, tokens[:count], portably)
    apart = distances(model, ours, theirs, count)
    last = upload(np.array([[tokens[count]]], np.int32), launch.DEVICE)
    logits = [step_logits(step, last, count) for step in steps]
    good = apart[3] <= 1.5 * apart[0] + 1e-3 and bool(np.isfinite(logits).all())
    others = "the portable graph's" if portably else "single operations'"
    print(
        f"{name}: {count} tokens, {len(set(tokens))} different, {every / seconds[0]:.0f} tok/s in the first {every}, "
        f"{every / seconds[-1]:.0f} in the last; keys and values apart from {others} by "
        f"{', '.join(f'{x:.2e}' for x in apart)} (quarters of the positions), logits {relative(*logits):.2e}; "
        f"compared in {time.perf_counter() - began:.0f} s "
        f"{'good' if good else 'BAD'}",
        flush=True,
    )
    return good


def main() -> int:
    """Run the requested models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["E2B", "E2B@int8"])
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--portable", action="store_true", help="compare with the portable graph")
    options = parser.parse_args()
    return 0 if all([soak(name, options.tokens, options.portable) for name in options.models]) else 1


if __name__ == "__main__":
    sys.exit(main())
