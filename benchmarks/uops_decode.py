"""Speed and equality of a token's work as kernels written in UOps, on an NVIDIA GPU, with random weights made there.

    python benchmarks/uops_decode.py [--models E2B E2B@int8 E2B:10] [--contexts 512] [--steps 64] [--check] [--kernels]
    python benchmarks/uops_decode.py --models E2B --prompt 1024 --chunks 32 128 512

These kernels are what GPUs without kernels of their own run; here tinygrad renders them as CUDA. Prints tokens per
second of the captured graph, bytes of weights per second and the share of a plain read's rate. ``--check`` compares the
final hidden state with the portable form on the same cache, both in bf16 and against the portable form in fp32;
``--kernels`` lists where the time goes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
from cuda_check import filled, in_fp32, relative
from cuda_models import ModelWithEngine, random_model, with_chunk
from tinygrad import Device

from gemma4_core.model.cache import Storage
from gemma4_core.ops import portable
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.steps import Chunk
from gemma4_core.plugins import registry
from gemma4_plugins.commands.bench.bandwidth import read_bandwidth
from gemma4_plugins.commands.bench.traffic import weight_bytes
from gemma4_plugins.devices import uops

LIMIT = 1.25


def model_of(name: str, chunk: int = 128) -> ModelWithEngine:
    """A preset with random weights; ``:10`` after it keeps that many layers, ``@int8`` means int8 matrices."""
    name, _, int8 = name.partition("@")
    preset, _, layers = name.partition(":")
    return random_model(preset, with_chunk(uops.operations(), chunk), int(layers) if layers else None, int8 == "int8")


def measure(model: ModelWithEngine, context: int, steps: int) -> tuple[list[float], float]:
    """Seconds per step of five runs, and kernels per layer."""
    storage = model.pool.take(model, 1, context + 256)
    step = model.engine.portable_step(storage, False)
    token = upload(np.array([[5]], np.int32), model.device)
    times = []
    for run in range(6):
        Device[model.device].synchronize()
        began = time.perf_counter()
        for i in range(steps if run else 3):
            token = step(token, context + i % 64, None)[0]
        Device[model.device].synchronize()
        times.append((time.perf_counter() - began) / steps)
    graph = storage.graphs["decode graph", False]
    assert isinstance(graph, CapturedGraph)
    return times[1:], graph.kernels / model.config.text_config.num_hidden_layers


def measure_prompt(name: str, length: int, chunk: int) -> float:
    """Positions per second of a prompt through the portable graph, in chunks of this many."""
    model = model_of(name, chunk)
    storage = model.pool.take(model, 1, length)
    ids = (np.arange(length, dtype=np.int32)[None] * 7919 + 3) % model.config.text_config.vocab_size
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for start in range(0, length, chunk):
            model.engine.append_portable(storage, start, Chunk(ids[:, start : start + chunk]), None, False)
        Device[model.device].synchronize()
        seconds.append(time.perf_counter() - began)
    return length / min(seconds[1:])


def hidden(model: ModelWithEngine, storage: Storage, position: int, plain: bool) -> np.ndarray:
    """The final hidden state of a token at a position."""
    operations = model.operations
    if plain:
        model.operations = with_chunk(portable(), 128)
    storage.graphs.clear()
    found: np.ndarray = model.engine.hidden_step(storage, position, np.array([[7]], np.int32)).float().numpy().ravel()
    storage.graphs.clear()
    model.operations = operations
    return found


def check(name: str, model: ModelWithEngine, positions: list[int]) -> bool:
    """Whether the kernels are as near to an fp32 run as the portable form."""
    truth_model = in_fp32(model, with_chunk(portable(), 128))
    good = True
    for position in positions:
        mine = filled(model, position + 8)
        theirs, exact = filled(model, position + 8, mine), filled(truth_model, position + 8, mine)
        truth = hidden(truth_model, exact, position, True)
        error = relative(hidden(model, mine, position, False), truth)
        usual = relative(hidden(model, theirs, position, True), truth)
        holds = bool(error <= LIMIT * usual)
        good &= holds
        verdict = "good" if holds else "BAD"
        print(f"{name} at {position}: {error:.2e}, portable {usual:.2e} from fp32 {verdict}", flush=True)
    return good


def kernels(name: str, context: int) -> None:
    """Microseconds of each kernel in a step, by name, as tinygrad times them one by one."""
    command = [sys.executable, __file__, "--models", name, "--contexts", str(context), "--steps", "2", "--child"]
    settings = {**os.environ, "DEBUG": "2", "JIT": "2", "GEMMA4_KEEP_GRAPHS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=True)
    spent: dict[str, list[float]] = defaultdict(list)
    for line in done.stdout[done.stdout.index("MEASURED") :].splitlines():
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        found = re.search(r"\*\*\* CUDA\s+\d+ (\S+) .* tm\s+([\d.]+)(us|ms)", line)
        if found:
            spent[found[1]].append(float(found[2]) * (1 if found[3] == "us" else 1000))
    total = 0.0
    runs = 2 * 5 + 3
    for kernel, times in sorted(spent.items(), key=lambda item: -sum(item[1])):
        total += sum(times) / runs
        middle = statistics.median(times)
        print(f"    {sum(times) / runs:8.1f} us a step, {len(times) / runs:5.1f} x {middle:7.1f}  {kernel}")
    print(f"    {total:8.1f} us in total")


def main() -> int:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["E2B", "E2B@int8"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--prompt", type=int, help="length of a prompt that is measured instead, chunk by chunk")
    parser.add_argument("--chunks", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rate = None if options.child or options.prompt else read_bandwidth(registry.devices["cuda"])
    good = True
    for name in options.models:
        if options.prompt:
            for chunk in options.chunks:
                speed = measure_prompt(name, options.prompt, chunk)
                print(f"{name} prompt of {options.prompt} in chunks of {chunk}: {speed:.0f} tok/s", flush=True)
            continue
        model = model_of(name)
        if options.child:
            print("MEASURED")
        if options.check:
            good &= check(name, model, options.contexts)
            continue
        for context in options.contexts:
            times, each = measure(model, context, options.steps)
            seconds, size = statistics.median(times), weight_bytes(model)
            share = "" if rate is None else f", {100 * size / seconds / rate:.0f} % of read"
            print(f"{name} context {context}: {1 / seconds:.1f} tok/s, {size / seconds / 1e12:.2f} TB/s{share}, "
                  f"{each:.1f} kernels a layer", flush=True)  # fmt: skip
            if options.kernels:
                kernels(name, context)
        del model
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
