"""From starting a process to its first token: with empty kernel caches, and with the caches that the first run filled.

    python benchmarks/cold_start.py --model-dir models/gemma-4-E2B --device cpu --runs 3

The first run finds no compiled kernel on disk, the others find all. Prints one JSON object: seconds of each stage, and
of a plain read of the same files, to compare loading with. The user's own caches are not used.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from payload import now, parse, python, revision, run, start, write_json

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import Number, Whole, model_option
from gemma4_core.cli.output import note, on_terminal, write
from gemma4_core.errors import InputError

STAGES = ("import_seconds", "load_seconds", "first_token_seconds", "total_seconds")
PIECE = 16 << 20


def once(model: str, device: str, length: int) -> dict[str, Any]:
    """Load a model, generate one token, and report the time of day at each stage."""
    from gemma4_core import load_pretrained
    from gemma4_plugins.commands.bench.speed import prompt_ids

    imported = time.time()
    loaded_model = load_pretrained(model, device=device, modalities=("text",))
    loaded = time.time()
    [token] = loaded_model.generate(prompt_ids(loaded_model, length), 1, stop_ids=())
    return {"imported": imported, "loaded": loaded, "first_token": time.time(), "token": token,
            "device": loaded_model.device_name, "format": loaded_model.format_name}  # fmt: skip


def started(command: Sequence[str], caches: Path, seconds: float | None) -> dict[str, Any]:
    """Seconds of each stage of one process. Raises InputError where it fails."""
    began = time.time()
    ended = run(command, environment(caches), seconds)
    if ended.code != 0:
        raise InputError(f"the run failed: {ended.why}")
    told = parse(ended.out, "the run")
    moments = [began, told["imported"], told["loaded"], told["first_token"]]
    stages = [after - before for before, after in itertools.pairwise(moments)]
    times = dict(zip(STAGES, [*stages, moments[-1] - began], strict=True))
    return {**times, **{name: told[name] for name in ("token", "device", "format")}}


def environment(caches: Path) -> Mapping[str, str]:
    """Environment that makes tinygrad, this project and the CUDA driver keep compiled code in folders of our own."""
    return {"XDG_CACHE_HOME": str(caches), "CACHEDB": str(caches / "kernels.db"),
            "CUDA_CACHE_PATH": str(caches / "cuda")}  # fmt: skip


def plain_read(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of reading the weights' files, from the page cache as far as they fit there."""
    files = sorted(folder.glob("*.safetensors"))
    seconds, total = 0.0, 0
    for _ in range(2):  # the first pass brings them into the cache
        began, total = time.perf_counter(), 0
        buffer = memoryview(bytearray(PIECE))
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
        seconds = time.perf_counter() - began
    return seconds, total


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each stage."""
    return {name: statistics.median(entry[name] for entry in runs) for name in STAGES}


@click.command("cold_start", cls=GemmaCommand)
@model_option()
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Device plugin.")
@click.option("--prompt-length", type=Whole(), default=32, show_default=True, help="Tokens before the first new one.")
@click.option("--runs", type=Whole(1, 100), default=3, show_default=True,
              help="Runs with full caches, after the first.")
@click.option("--run-seconds", type=Number(0, above=True), default=None, help="End a run that takes longer.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE.json",
              help="Also write the artefact to this file.")
@click.option("--once", "single", is_flag=True, hidden=True)
def cold_start_command(
    model: str, device: str, prompt_length: int, runs: int, run_seconds: float | None, out: Path | None, single: bool
) -> None:
    """Measure the time from starting a process to its first token."""
    if single:
        write(json.dumps(once(model, device, prompt_length)) + "\n")
        return
    from gemma4_core.checkpoint.hub import resolve_folder

    folder = resolve_folder(model)
    say = note if on_terminal() else lambda text: None
    command = python("cold_start.py", "--model-dir", folder, "--device", device, "--prompt-length", prompt_length,
                     "--once")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gemma4-cold-") as caches:
        say("first run, empty caches")
        cold = started(command, Path(caches), run_seconds)
        warm = []
        for number in range(runs):
            say(f"run {number + 1} of {runs} with full caches")
            warm.append(started(command, Path(caches), run_seconds))
    seconds, size = plain_read(folder)
    middle = medians(warm)
    report = {
        "model": model, "device": cold["device"], "format": cold["format"], "prompt_tokens": prompt_length,
        "cold": cold, "warm": middle, "runs": warm, "plain_read_seconds": seconds, "file_bytes": size,
        "load_of_plain_read": middle["load_seconds"] / seconds if size else None, "finished": now(),
        "revision": revision(),
    }  # fmt: skip
    if out is not None:
        write_json(out, report)
    write(json.dumps(report, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    start(cold_start_command, __file__)
