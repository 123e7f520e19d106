"""Every size in every format on every device: one row each, in a process of its own.

    python benchmarks/matrix.py --models-dir models --sizes E2B E4B --formats bf16 int8 --devices cpu cuda \
        --beams 0 max --max-new-tokens 256 --out benchmarks/results.csv --resume --progress-every 64

A missing device, a crash, or too little memory gives a row whose ``status`` says so, and the matrix goes on. The CSV is
complete at any moment; ``--resume`` measures rows that are not ``ok`` yet. While a row runs,
``results.csv.progress.jsonl`` shows its progress. docs/benchmarks.md explains the columns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from bandwidth import measured
from decode import ProgressLog, with_limit
from matrix_table import Table
from payload import Ended, now, parse, python, run, start

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import Beam, Number, Whole
from gemma4_core.errors import CheckpointError, Gemma4Error, InputError

DENSE = "bf16"
FRESH_SECONDS = 30.0
"""Seconds for which a bandwidth reading at the end of one row is also used for the beginning of the next."""


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    size: str
    """As in the folder's name: ``E2B``, ``E4B-it``."""
    format: str
    device: str
    beam: str
    """As typed."""
    beam_width: int
    prompt_tokens: int
    max_new_tokens: int
    folder: Path


@dataclass(frozen=True)
class Settings:
    """What all rows have in common."""

    beam_seconds: float | None
    progress_every: int
    row_seconds: float | None
    read: bool


class Beams(click.ParamType):
    """A beam as typed, with its width."""

    name = "N|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        return str(value).strip().lower(), Beam().convert(value, param, ctx)


class Rates:
    """Bandwidth readings by device, repeated if the last one is old."""

    def __init__(self, read: bool) -> None:
        self.read = read
        self.last: dict[str, tuple[float, float | None]] = {}

    def fresh(self, device: str) -> float | None:
        """Take a new reading."""
        found = measured(device) if self.read else None
        self.last[device] = (time.monotonic(), found)
        return found

    def recent(self, device: str) -> float | None:
        """The last reading, or a new one."""
        at, found = self.last.get(device, (-FRESH_SECONDS, None))
        return found if time.monotonic() - at < FRESH_SECONDS else self.fresh(device)


def folder_of(size_name: str, format_name: str, models_dir: Path | None) -> Path:
    """Where ``gemma4 download`` and ``gemma4 quantize`` put a checkpoint; without ``--models-dir`` the current folder,
    then the Hugging Face cache."""
    name = size_name if format_name == DENSE else f"{size_name}-{format_name}"
    folder = (models_dir or Path()) / name
    if models_dir is None and format_name == DENSE and not folder.exists():
        from gemma4_core.checkpoint.snapshots import cached_snapshot

        return cached_snapshot(f"google/{name}") or folder
    return folder


def cells(
    sizes: Sequence[str], formats: Sequence[str], devices: Sequence[str], beams: Sequence[tuple[str, int]],
    lengths: Sequence[int], max_new_tokens: int, models_dir: Path | None,
) -> list[Cell]:
    """Rows in the order of the options. Raises CheckpointError and PluginError for unknown sizes and formats."""
    from gemma4_core.checkpoint.hub import repositories
    from gemma4_core.plugins import registry

    names = [name.split("/")[1] for name in repositories(sizes)]
    known = list(dict.fromkeys(registry.select("format", None, name).name for name in formats))
    places = {(name, form): folder_of(name, form, models_dir) for name in names for form in known}
    devices = list(dict.fromkeys(name.lower() for name in devices))
    each = itertools.product(names, known, devices, dict.fromkeys(beams), lengths)
    return [
        Cell(name.removeprefix("gemma-4-"), form, device, beam, width, length, max_new_tokens, places[name, form])
        for name, form, device, (beam, width), length in each
    ]


def key_values(cell: Cell) -> dict[str, Any]:
    """A row's first columns."""
    return {name: getattr(cell, name) for name in
            ("size", "format", "device", "beam", "beam_width", "prompt_tokens", "max_new_tokens", "folder")}


def child(cell: Cell, settings: Settings, progress: Path) -> list[str]:
    """The command line that measures one row."""
    options: list[object] = [
        "--model-dir", cell.folder, "--device", cell.device, "--beam", cell.beam_width, "--format", cell.format,
        "--prompt-length", cell.prompt_tokens, "--max-new-tokens", cell.max_new_tokens, "--no-bandwidth",
        "--progress-file", progress, "--progress-every", settings.progress_every, "--report-failure",
    ]  # fmt: skip
    if settings.beam_seconds is not None:
        options += ["--beam-seconds", settings.beam_seconds]
    return python("decode.py", *options)


def result(ended: Ended, seconds: float | None) -> dict[str, Any]:
    """The outcome of a row's process: its figures, or a status and the reason."""
    if ended.code is None:
        return {"status": "timed out", "error": f"not done after {seconds:g} s (--row-seconds)"}
    try:
        said = parse(ended.out, "the row's process")
    except Gemma4Error as error:
        said = {"error": str(error) if ended.code == 0 else ended.why}
    if ended.code == 0 and "error" not in said:
        return {"status": "ok", **said}
    if ended.code < 0:
        return {"status": "crashed", "error": ended.why}
    return {"status": "failed"} | {name: said.get(name) for name in ("status", "error") if said.get(name)}


def measure(cell: Cell, settings: Settings, progress: Path, rates: Rates) -> dict[str, Any]:
    """One row."""
    if not cell.folder.is_dir():
        return {"status": "missing", "error": f"no folder {cell.folder}; {how_to_get(cell)}"}
    if not (cell.folder / "config.json").is_file():
        return {"status": "missing", "error": f"{cell.folder} has no config.json; {how_to_get(cell)}"}
    before = rates.recent(cell.device)
    began = time.perf_counter()
    found = result(run(child(cell, settings, progress), seconds=settings.row_seconds), settings.row_seconds)
    found["row_seconds"] = time.perf_counter() - began
    if found["status"] != "ok":
        return found
    return with_limit(found, before, rates.fresh(cell.device))


def how_to_get(cell: Cell) -> str:
    """The command that makes a missing folder."""
    if cell.format != DENSE:
        return f"make it with: gemma4 quantize --models-dir {cell.folder.parent} --sizes {cell.size}"
    tuned = " --it" if cell.size.endswith("-it") else ""
    size = cell.size.removesuffix("-it")
    return f"fetch it with: gemma4 download --models-dir {cell.folder.parent} --sizes {size}{tuned}"


def run_all(
    wanted: Sequence[Cell], table: Table, settings: Settings, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure the rows that are not done, one by one. A device that was found absent is not tried again."""
    progress = Path(f"{table.path}.progress.jsonl")
    rates, absent = Rates(settings.read), {}
    for number, cell in enumerate(wanted, 1):
        key = key_values(cell)
        title = f"row {number} of {len(wanted)}: {title_of(key)}"
        if table.done(key):
            say(f"{title}: done before")
            continue
        say(title)
        log = ProgressLog(str(progress), 0)
        log.note("row", row=number, rows=len(wanted), started=now(), **{name: str(v) for name, v in key.items()})
        found = absent.get(cell.device) or measure(cell, settings, progress, rates)
        if found["status"] == "unavailable":
            absent[cell.device] = {"status": "unavailable", "error": found["error"]}
        row = found | key | {"machine": machine_name(), "finished": now()}
        table.put(row)
        log.note("done", row=number, status=row["status"], error=row.get("error"))
        yield row


def machine_name() -> str:
    """Processor and system of this machine."""
    import platform

    from gemma4_core.devices.machine import cpu_count

    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {cpu_count()} cores, {platform.system()} {platform.machine()}"


def title_of(row: dict[str, Any]) -> str:
    """What a row is about, in words."""
    return (f"{row['size']} {row['format']} on {row['device']}, beam {row['beam']}, {row['prompt_tokens']} + "
            f"{row['max_new_tokens']} tokens")


def line_of(row: dict[str, Any]) -> str:
    """A row for a reader."""
    if row["status"] != "ok":
        return f"{title_of(row)}: {row['status']}: {row['error']}"
    rate, gbps, percent = (row.get(name) for name in ("tokens_per_second", "effective_gbps", "percent_of_limit"))
    said = [f"{rate:.4g} tok/s" if rate else "ok", f"{gbps:.3g} GB/s" if gbps else "",
            f"{percent:.3g} % of the read rate" if percent else ""]  # fmt: skip
    return f"{title_of(row)}: {', '.join(part for part in said if part)}"


@click.command("matrix", cls=GemmaCommand)
@click.option("--models-dir", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Folder of checkpoints as gemma4 download and gemma4 quantize make it. Default: the current one, "
                   "then the Hugging Face cache.")
@click.option("--sizes", cls=ManyOption, separator=",", required=True, metavar="SIZE...",
              help="E2B, E4B, 26B-A4B, 31B; with -it for the tuned ones.")
@click.option("--formats", cls=ManyOption, separator=",", default=(DENSE,), show_default=True, metavar="NAME...",
              help="Checkpoint format plugins.")
@click.option("--devices", cls=ManyOption, separator=",", default=("auto",), show_default=True, metavar="NAME...",
              help="Device plugins.")
@click.option("--beams", cls=ManyOption, separator=",", type=Beams(), default=("0",), show_default=True,
              metavar="N|max...", help="Widths of tinygrad's kernel search.")
@click.option("--prompt-lengths", cls=ManyOption, separator=",", type=Whole(), default=(32,), show_default=True,
              metavar="TOKENS...", help="Tokens before the generated ones.")
@click.option("--max-new-tokens", type=Whole(), default=64, show_default=True,
              help="Exactly this many are generated: stop tokens are off.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.csv",
              help="Table to write.")
@click.option("--resume", is_flag=True, help="Continue a table; rows that are ok stay as they are.")
@click.option("--progress-every", type=Whole(0), default=0, metavar="TOKENS",
              help="Record progress in FILE.csv.progress.jsonl every this many tokens.")
@click.option("--beam-seconds", type=Number(0), default=None, help="Time budget of the kernel search of a row.")
@click.option("--row-seconds", type=Number(0, above=True), default=None, help="End a row that takes longer.")
@click.option("--bandwidth/--no-bandwidth", default=True, show_default=True,
              help="Measure the read rate of the device before and after a row.")
def matrix_command(
    models_dir: Path | None, sizes: Sequence[str], formats: Sequence[str], devices: Sequence[str],
    beams: Sequence[tuple[str, int]], prompt_lengths: Sequence[int], max_new_tokens: int, out: Path, resume: bool,
    progress_every: int, beam_seconds: float | None, row_seconds: float | None, bandwidth: bool,
) -> None:  # fmt: skip
    """Measure every combination and write a CSV. The status of a row is its outcome; the exit code is 0."""
    from gemma4_core.checkpoint.temporary import lock
    from gemma4_core.cli.output import note, on_terminal, write

    if models_dir is not None and not models_dir.is_dir():
        raise InputError(f"--models-dir {models_dir} is not a folder; fetch models with gemma4 download --models-dir")
    wanted = cells(sizes, formats, devices, beams, list(dict.fromkeys(prompt_lengths)), max_new_tokens, models_dir)
    settings = Settings(beam_seconds, progress_every, row_seconds, bandwidth)
    table = Table.open(out, resume)
    progress = Path(f"{out}.progress.jsonl")
    with open(progress, "a") as file:
        if lock(file) is False:
            raise CheckpointError(f"another process is writing in {progress}; wait for it to end")
        if not resume:
            file.truncate(0)
        for row in run_all(wanted, table, settings, note if on_terminal() else lambda text: None):
            write(line_of(row) + "\n")


if __name__ == "__main__":
    start(matrix_command, __file__)
