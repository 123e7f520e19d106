"""Speed of the CUDA decode step, with random weights made on the GPU.

    python benchmarks/cuda_decode.py [--models E2B E4B 26B-A4B 31B] [--contexts 512 8192 32768] [--steps 100] [--parts]

Prints tokens per second, bytes of weights per second and the share of a plain read's rate, medians of five runs of
steps queued back to back; ``--parts`` adds where one block's time goes, in microseconds per layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time

import numpy as np
from cuda_models import ModelWithEngine, chunk_rows, one_row, random_model, use_binaries, with_chunk

from gemma4_core.engine.rows import greedy_rows
from gemma4_core.ops import portable
from gemma4_core.ops.graphs import upload
from gemma4_core.plugins import registry
from gemma4_plugins.commands.bench.bandwidth import read_bandwidth
from gemma4_plugins.commands.bench.traffic import weight_bytes
from gemma4_plugins.devices.cuda.kernels import launch, plan
from gemma4_plugins.devices.cuda.kernels import step as cuda_step
from gemma4_plugins.devices.cuda.kernels.plan import Machine, Plan, make_plan
from gemma4_plugins.devices.cuda.kernels.sources import ENTRY, device_source, step_source

PARTS = ("qkv", "o", "router", "gate_up", "down", "experts", "experts_down", "ple_gate", "ple", "context", "head")


def timed_step(model: ModelWithEngine, context: int, warps: int, parts: bool) -> cuda_step.CudaStep:
    """The step against a slot for this context."""
    slots = model.pool.take(model, 1, context + 256)
    machine = dataclasses.replace(cuda_step.machine(), warps=warps)
    plan = make_plan(model.text.config, machine, cuda_step.served(model.engine.view) == "int8", parts)
    assert plan is not None, "the kernel does not fit this device"
    source = device_source(step_source(plan))
    kernel = launch.Kernel(source, ENTRY, plan.threads, plan.shared_bytes, launch.features())
    assert kernel.resident_blocks() >= 1, "the kernel's blocks would not all be resident"
    return cuda_step.CudaStep(model.engine.view, slots, plan, kernel)


def measure(step: cuda_step.CudaStep, context: int, steps: int) -> list[float]:
    """Seconds per step of five runs."""
    ids = upload(np.array([5], np.int32), launch.DEVICE)
    greedy, times = greedy_rows(1), []
    for run in range(6):
        launch.wait()
        began = time.perf_counter()
        for i in range(steps if run else 10):
            ids = step(one_row(ids, context + i % 64), greedy).ids
        launch.wait()
        times.append((time.perf_counter() - began) / steps)
    return times[1:]


def measure_prompt(model: ModelWithEngine, length: int, runs: int) -> tuple[list[float], int]:
    """Seconds of prefills of a prompt, the first token included, and bytes of its keys and values."""
    ids = (np.arange(length, dtype=np.int32) * 7919 + 3) % model.config.text_config.vocab_size
    slots = model.pool.take(model, 1, length + 8)
    step = model.engine.step(slots)
    assert isinstance(step, cuda_step.CudaStep) and step.chunked, "the chunk kernels do not serve this model here"
    greedy, times = greedy_rows(1), []
    for _ in range(runs + 1):
        launch.wait()
        began = time.perf_counter()
        for start in range(0, length, model.chunk):
            part = ids[start : start + model.chunk]
            last = start + model.chunk >= length
            done = step(chunk_rows(part, start, [len(part) - 1] if last else []), greedy if last else None)
        done.read()
        times.append(time.perf_counter() - began)
    return times[1:], sum(held.nbytes() for held in slots.layers if held is not None)


def parts_of(plan: Plan, step: cuda_step.CudaStep, layers: int) -> str:
    """Microseconds of one block's parts per layer: wait and operand, rows, results."""
    at = int(plan.constants["AT_TIMERS"])
    raw = step.scratch.numpy().reshape(-1)[at * 2 :][: plan.blocks * 40].reshape(plan.blocks, 40).astype(np.float64)
    clock = launch.attribute("CLOCK_RATE") / 1e3  # cycles per microsecond
    mean = raw.mean(0) / clock
    lines = []
    for i, name in enumerate(PARTS):
        share = 1 if name in ("context", "head") else layers
        wait, rows, out = (mean[3 * i + k] / share for k in range(3))
        if wait + rows + out > 0:
            lines.append(f"    {name:13s} {wait:7.2f} {rows:7.2f} {out:7.2f}")
    attend, combine, end = (mean[33] + mean[36:40].sum()) / layers, mean[34] / layers, mean[35]
    lines.append(f"    attention {attend:.2f}, joining slices {combine:.2f} (per layer, before o), end {end:.2f}")
    busy = raw[raw[:, 36] > 0] / clock / layers  # blocks that attend in some layers; slowest first
    busy = busy[np.argsort(-busy[:, 36])][:8]
    means = busy.mean(0)
    lines.append("    of the eight busiest: " + ", ".join(
        f"{what} {means[i]:.2f}" for what, i in
        (("queries", 36), ("scores", 37), ("weights", 38), ("values", 39), ("publishing", 33))
    ))
    return "\n".join(lines)


def main() -> None:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["E2B", "E4B", "26B-A4B", "31B"], help="@int8 after a name: int8"
    )
    parser.add_argument("--contexts", nargs="+", type=int, default=[512])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warps", nargs="+", type=int, default=[Machine(1, 1).warps])
    parser.add_argument("--flight", nargs="+", type=int, help="bytes in flight to a block, instead of the plan's")
    parser.add_argument("--pieces", nargs="+", type=int, help="bytes of a row in a stage, instead of plan.PIECES")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--runs", type=int, default=5, help="of a prompt")
    parser.add_argument("--prompts", nargs="*", type=int, default=[])
    parser.add_argument("--binaries", help="folder of kernels compiled beforehand, see cuda_models.use_binaries")
    options = parser.parse_args()
    pieces = [(piece,) for piece in options.pieces] if options.pieces else [plan.PIECES]
    flights = [(each, each) for each in options.flight or ()] or [(plan.FLIGHT, plan.WIDE_FLIGHT)]
    if options.binaries:
        use_binaries(options.binaries)
    rate = read_bandwidth(registry.devices["cuda"])
    assert rate is not None, "the read of the device's memory failed"
    print(f"plain read {rate / 1e12:.2f} TB/s", flush=True)
    for name in options.models:
        operations = dataclasses.replace(with_chunk(portable(), 512), step=cuda_step.step)
        preset, _, int8 = name.partition("@")
        model = random_model(preset, operations, int8=int8 == "int8")
        size = weight_bytes(model)
        for context in options.contexts:
            for warps, flight, tried in itertools.product(options.warps, flights, pieces):
                (plan.FLIGHT, plan.WIDE_FLIGHT), plan.PIECES = flight, tried
                step = timed_step(model, context, warps, options.parts)
                flying = step.plan.constants["FLIGHT"]
                seconds = statistics.median(times := measure(step, context, options.steps))
                print(
                    f"{name} context {context} warps {warps} flight {flying} pieces {tried}: {seconds * 1e3:.3f} ms "
                    f"{1 / seconds:.1f} tok/s ({1 / max(times):.1f} to {1 / min(times):.1f}), "
                    f"{size / seconds / 1e12:.2f} TB/s, {100 * size / seconds / rate:.0f} % of read",
                    flush=True,
                )
                if options.parts:
                    print(parts_of(step.plan, step, model.text.config.num_hidden_layers), flush=True)
                del step
        for length in options.prompts:
            times, held = measure_prompt(model, length, options.runs)
            seconds = statistics.median(times)
            print(
                f"{name} prompt of {length}: {seconds * 1e3:.1f} ms, {length / seconds:.0f} tok/s "
                f"({length / max(times):.0f} to {length / min(times):.0f}), {held / 1e6:.0f} MB of keys and values",
                flush=True,
            )
        del model


if __name__ == "__main__":
    main()
