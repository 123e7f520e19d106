"""Speed and memory of a whole fine-tuning step, with random weights made on the device; beside it peer_training.py.

    python benchmarks/training.py [--size E2B] [--lengths 1024 4096] [--lora 16] [--int8] [--compact] [--checkpointing]
    python benchmarks/training.py --device cpu --layers 4 --lengths 512 [--lora 16] [--int8] [--compact] [--dropout 0.1]

Prints for each length the seconds until the first step is done, then tokens per second, the median of the later steps
but one, and the device's memory in buffers and in total. A step is loss, gradients of every weight, or with --lora of
an adapter's, clipping of their norm to 1, and the update.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402
import statistics  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from cuda_models import random_model  # noqa: E402
from host_models import random_text  # noqa: E402
from tinygrad import GlobalCounters  # noqa: E402
from tinygrad.helpers import ansistrip  # noqa: E402

from gemma4_core import GemmaTrainingBatch, TrainedPart, build_optimizer, train_step  # noqa: E402
from gemma4_core.contracts import DeviceSettings  # noqa: E402
from gemma4_core.devices import activate  # noqa: E402
from gemma4_core.model.model import GemmaModel  # noqa: E402
from gemma4_core.training.optimizer import TrainingOptimizer  # noqa: E402
from gemma4_core.training.programs.steps import Steps  # noqa: E402


def main() -> None:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="E2B")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=int, help="only this many of the first layers; on a CPU an even number, half "
                        "of them with shared keys and values")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapter")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--compact", action="store_true", help="adamw without masters, its slots in bfloat16")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train an adapter beside all matrices of the layers")
    parser.add_argument("--int8", action="store_true", help="with int8 matrices")
    parser.add_argument("--mixed", type=int, metavar="STEPS", help="so many steps over rows of 32 to 2048 tokens alone")
    parser.add_argument("--profile", action="store_true", help="time the kernels of the last length one by one")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    backend, _ = activate(options.device, DeviceSettings())
    assert backend.free_memory is not None
    before = backend.free_memory()
    assert backend.operations is not None
    made = random_model if options.device == "cuda" else random_text
    model = made(options.size, backend.operations(), options.layers, options.int8)
    if options.lora:
        beside(model, options.lora, options.dropout)
    compact: dict[str, Any] = {"compact": True} if options.compact else {}
    optimizer = build_optimizer(model, options.optimizer, lr=1e-5, **compact)
    print(optimizer.summary, flush=True)
    rng = np.random.default_rng(0)
    if options.mixed:
        mixed(model, optimizer, options.mixed)
        return
    for length in options.lengths:
        times, cores = [], []
        for _ in range(options.steps):
            used = time.process_time()
            ids = rng.integers(10, model.config.text_config.vocab_size, (1, length), dtype=np.int32)
            began = time.perf_counter()
            batch = GemmaTrainingBatch(ids)
            loss = train_step(model, optimizer, batch, max_norm=1.0, checkpointing=options.checkpointing)
            value = loss.item()
            times.append(time.perf_counter() - began)
            cores.append(time.process_time() - used)
        taken, live = (before or 0) - (backend.free_memory() or 0), GlobalCounters.mem_used
        seconds, core_seconds = statistics.median(times[2:]), statistics.median(cores[2:])
        print(
            f"{options.size} {length} tokens: first step {times[0]:.2f} s, then {length / seconds:.0f} tok/s "
            f"({seconds * 1e3:.0f} ms, {core_seconds * 1e3:.0f} of the host's processors), {live / 1e9:.2f} GB in "
            f"buffers, {taken / 1e9:.1f} taken, loss {value:.3f}",
            flush=True,
        )
    if options.profile:
        show(optimizer.steps(model))


def mixed(model: GemmaModel, optimizer: TrainingOptimizer, steps: int) -> None:
    """Print how long steps over rows of many lengths take, and how long the process has run."""
    rng, began = np.random.default_rng(1), time.perf_counter()
    lengths = np.exp(rng.uniform(np.log(32), np.log(2048), steps)).astype(int)
    for length in lengths:
        ids = rng.integers(10, 200000, (1, length), dtype=np.int32)
        train_step(model, optimizer, GemmaTrainingBatch(ids), max_norm=1.0).item()
    print(f"{steps} steps over {lengths.sum()} tokens in rows of 32 to 2048: {time.perf_counter() - began:.1f} s, "
          f"{time.perf_counter() - BEGAN:.1f} s from the start of the process, {optimizer.shapes} shapes", flush=True)


def beside(model: GemmaModel, rank: int, dropout: float = 0.0) -> None:
    """Put an adapter beside every matrix of the layers, and let it train."""
    from gemma4_lora.adapters import Adapters
    from gemma4_lora.fresh import fresh_adapter
    from gemma4_lora.transform import tensors_of, with_dropout

    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    shapes = {name: tuple(place.matrix.shape) for name, place in model.places.items()
              if ".layers." in name and name.removesuffix(".weight").endswith(targets)}
    adapters = Adapters.of(model)
    adapter = adapters.add("trained", fresh_adapter(shapes, model.config.text_prefix, rank=rank))
    with_dropout(adapter, {"lora_dropout": dropout})
    adapters.activate("trained", mode="beside")
    model.train_only(TrainedPart(tensors_of(adapter), lambda folder: None, lambda folder: None), "lora")


def show(steps: Steps) -> None:
    """Print the seconds of each kernel of the newest pass, the longest first."""
    replay = list(steps.passes.values())[-1].replay
    assert replay is not None
    spent: dict[str, list[float]] = {}
    for call, seconds in replay.timed():
        spent.setdefault(ansistrip(getattr(call.src[0].arg, "name", "copy")), []).append(seconds)
    for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:40]:
        print(f"{sum(times) * 1e3:8.2f} ms {len(times):5d} x {name}")


if __name__ == "__main__":
    main()
