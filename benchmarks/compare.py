"""This project beside transformers and llama.cpp, on the same random weights, in one session.

    python benchmarks/compare.py --size E2B --root /dev/shm --device cpu --formats bf16 int8 \
        --python ~/ref/bin/python --llama-bench ~/llama.cpp/build/bin/llama-bench --llama-cpp ~/llama.cpp

Engines run in turn, round after round, and the read rate of the device is measured before and after each run: a ratio
is one of medians of the same minutes. A peer that is not found is reported as absent; nothing is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from bandwidth import measured
from payload import failed, now, revision, start, write_json
from peers import ENGINES, LLAMA, OURS, TRANSFORMERS, Engine, Test, Tools, engines

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import Number, Whole
from gemma4_core.cli.output import note, on_terminal, write
from gemma4_core.devices.machine import cpu_count
from gemma4_core.errors import Gemma4Error, InputError

RATES = ("prompt_tokens_per_second", "tokens_per_second")


@contextmanager
def checkpoint(model_dir: Path | None, size: str | None, root: Path, keep: bool) -> Any:
    """The folder to compare on, the user's or one of random weights, and a folder for files made from it. What was made
    for a size is deleted afterwards, unless it is to be kept."""
    if model_dir is not None:
        if not (model_dir / "config.json").is_file():
            raise InputError(f"--model-dir {model_dir} has no config.json; give a checkpoint folder")
        yield model_dir, root
        return
    from gemma4_core.checkpoint import write_random_checkpoint
    from gemma4_core.config.presets import find

    assert size is not None
    work = root / f"gemma4-compare-{find(size)}"
    folder = work / find(size)
    try:
        if not (folder / "config.json").is_file():
            work.mkdir(parents=True, exist_ok=True)
            write_random_checkpoint(folder, size, text_only=True)
        yield folder, work
    except OSError as fault:
        raise InputError(f"--root {root} cannot be written: {fault.strerror}; give another folder") from fault
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def compare(
    found: Sequence[Engine], rounds: int, read: Callable[[], float | None], seconds: float | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Runs of all engines in turn, with the read rate before and after; one that fails is not tried again."""
    told = {engine.name: {"name": engine.name, "engine": engine.engine, "format": engine.format,
                          "absent": engine.absent, "error": None, "runs": []} for engine in found}  # fmt: skip
    before = read() if any(not engine.absent for engine in found) else None
    for number in range(rounds):
        for engine in found:
            entry: dict[str, Any] = told[engine.name]
            if engine.absent or entry["error"]:
                continue
            say(f"round {number + 1} of {rounds}: {engine.name}")
            try:
                payload = engine.once(seconds)
            except Gemma4Error as error:
                entry["error"] = failed(error)
                continue
            after = read()
            entry["runs"].append({**payload, "read_gbps_before": before, "read_gbps_after": after})
            before = after
    return [entry | medians(entry["runs"]) for entry in told.values()]


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The median of each rate over an engine's runs."""
    values = {name: [run[name] for run in runs if run.get(name)] for name in RATES}
    return {name: statistics.median(known) if known else None for name, known in values.items()}


def ratios(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Our rate over a peer's, for each format: int8 is compared with llama.cpp's Q8_0 and with bf16 engines' alike."""
    found = {}
    for mine in (entry for entry in entries if entry["engine"] == OURS):
        for peer in (entry for entry in entries if entry["engine"] != OURS and entry["format"] == mine["format"]):
            for name, what in zip(RATES, ("prompt", "decode"), strict=True):
                if mine[name] and peer[name]:
                    found[f"{what}: {mine['name']} / {peer['name']}"] = mine[name] / peer[name]
    return found


def as_markdown(report: dict[str, Any]) -> str:
    """The table that a page quotes."""
    title = (f"{report['checkpoint']} on {report['device']}, prompt of {report['prompt_tokens']}, "
             f"{report['new_tokens']} new tokens, medians of {report['rounds']}, {report['finished']}")
    lines = [title, "", "| engine | prompt, tok/s | decode, tok/s | read rate, GB/s |", "|---|---:|---:|---:|"]
    for entry in report["engines"]:
        if entry["absent"] or entry["error"]:
            lines.append(f"| {entry['name']} | {entry['absent'] or entry['error']} | | |".replace("\n", " "))
            continue
        read = [run[key] for run in entry["runs"] for key in ("read_gbps_before", "read_gbps_after") if run[key]]
        spread = f"{min(read):.1f} to {max(read):.1f}" if read else ""
        lines.append(f"| {entry['name']} | {shown(entry[RATES[0]])} | {shown(entry[RATES[1]])} | {spread} |")
    lines += ["", *(f"- {name}: {ratio:.2f} x" for name, ratio in report["ratios"].items())]
    return "\n".join(lines).rstrip() + "\n"


def shown(rate: float | None) -> str:
    """A rate with three digits."""
    return "" if rate is None else f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


@click.command("compare", cls=GemmaCommand)
@click.option("--model-dir", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Checkpoint folder to compare on.")
@click.option("--size", default=None, metavar="SIZE", help="Or random weights of a preset: E2B, E4B, 26B-A4B, 31B, …")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), default=tempfile.gettempdir(),
              show_default=True, help="Folder for random weights, quantised folders and GGUF files.")
@click.option("--keep", is_flag=True, help="Keep the files made there for the next comparison.")
@click.option("--engines", "wanted", cls=ManyOption, separator=",", type=click.Choice(ENGINES),
              default=(OURS, TRANSFORMERS, LLAMA), show_default=True, metavar="NAME...", help="Which to compare: "
              f"{', '.join(ENGINES)}.")
@click.option("--formats", cls=ManyOption, separator=",", type=click.Choice(["bf16", "int8"]), default=("bf16", "int8"),
              show_default=True, metavar="NAME...", help="Formats; int8 is compared with llama.cpp's Q8_0.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--prompt-tokens", "-p", type=Whole(), default=512, show_default=True)
@click.option("--new-tokens", "-n", type=Whole(), default=64, show_default=True)
@click.option("--rounds", type=Whole(1, 100), default=3, show_default=True, help="Runs of each engine, in turn.")
@click.option("--threads", type=Whole(1, 4096), default=None, help="CPU threads. Default: one per core.")
@click.option("--python", "python_path", default=sys.executable, metavar="PROGRAM", show_default="this one",
              help="Python with torch and transformers.")
@click.option("--llama-bench", envvar="LLAMA_BENCH", show_envvar=True, default="llama-bench", show_default=True,
              metavar="PROGRAM", help="llama.cpp's benchmark.")
@click.option("--llama-cpp", envvar="LLAMA_CPP", show_envvar=True, type=click.Path(path_type=Path), default=None,
              metavar="FOLDER", help="llama.cpp's sources, whose converter makes the GGUF files.")
@click.option("--run-seconds", type=Number(0, above=True), default=None, help="End a run that takes longer.")
@click.option("--bandwidth/--no-bandwidth", default=True, show_default=True, help="Measure the read rate between runs.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE.json",
              help="Artefact to write; a table goes to stdout. Default: the artefact goes to stdout.")
def compare_command(
    model_dir: Path | None, size: str | None, root: Path, keep: bool, wanted: Sequence[str], formats: Sequence[str],
    device: str, prompt_tokens: int, new_tokens: int, rounds: int, threads: int | None, python_path: str,
    llama_bench: str, llama_cpp: Path | None, run_seconds: float | None, bandwidth: bool, out: Path | None,
) -> None:  # fmt: skip
    """Compare the speed of this project with that of transformers and llama.cpp on the same weights."""
    if (model_dir is None) == (size is None):
        raise click.UsageError("give either --model-dir or --size.")
    say: Callable[[str], None] = note if on_terminal() else lambda text: None
    tools = Tools(os.path.expanduser(python_path), os.path.expanduser(llama_bench), llama_cpp)
    with checkpoint(model_dir, size, root, keep) as (folder, work):
        test = Test(folder, work, device, tuple(dict.fromkeys(formats)), prompt_tokens, new_tokens,
                    threads or cpu_count())  # fmt: skip
        found = list(engines(wanted, test, tools, say))
        entries = compare(found, rounds, lambda: measured(device) if bandwidth else None, run_seconds, say)
    report = {
        "checkpoint": size or str(model_dir), "device": device, "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens, "rounds": rounds, "threads": test.threads, "finished": now(),
        "revision": revision(), "engines": entries, "ratios": ratios(entries),
    }  # fmt: skip
    if out is None:
        write(json.dumps(report, indent=2, allow_nan=False) + "\n")
        return
    write_json(out, report)
    write(as_markdown(report))


if __name__ == "__main__":
    start(compare_command, __file__)
