"""Decode speed against context and against size, drawn from tables of matrix.py.

    python benchmarks/plot.py benchmarks/h200.csv benchmarks/cpu.csv --out speed.svg

The left half has a line for each size, format, device and beam over the length of its context; the right half the best
rate of each size, with the share of the read rate on the bar. Needs matplotlib: pip install matplotlib
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from matrix_table import read
from payload import into, start

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.output import write
from gemma4_core.errors import InputError

SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Point:
    """A measured row."""

    size: str
    series: str
    """Format, device and beam."""
    context: float
    """Positions before the middle one of the new tokens."""
    rate: float
    percent: float | None


def points(paths: Sequence[Path]) -> list[Point]:
    """Rows that were measured. Raises InputError for files that are not tables, or without any such row."""
    found = []
    for path in paths:
        rows = read(path, "")
        if rows is None:
            raise InputError(f"{path} is not there or empty; give tables of benchmarks/matrix.py")
        for row in rows:
            if row["status"] == "ok" and row["tokens_per_second"]:
                found.append(point(row, path))
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no row has a decode rate; at least two new tokens give one")
    return found


def point(row: dict[str, str], path: Path) -> Point:
    """A row as a point. Raises InputError if a value is not a number."""
    beam = "" if row["beam"] == "0" else f", beam {row['beam']}"
    try:
        context = int(row["prompt_tokens"]) + int(row["max_new_tokens"]) / 2
        percent = float(row["percent_of_limit"]) if row["percent_of_limit"] else None
        rate = float(row["tokens_per_second"])
    except ValueError as fault:
        raise InputError(f"{path}: a row of {row['size'][:40]} holds no number: {str(fault)[:100]}") from None
    return Point(row["size"], f"{row['format']}, {row['device']}{beam}", context, rate, percent)


def lines(found: Sequence[Point]) -> dict[str, tuple[list[float], list[float]]]:
    """Contexts and rates by size and series, in order of context."""
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in found:
        series.setdefault(f"{entry.size} {entry.series}", []).append((entry.context, entry.rate))
    return {name: tuple(map(list, zip(*sorted(pairs), strict=True))) for name, pairs in series.items()}  # type: ignore[misc]


def best(found: Sequence[Point]) -> dict[str, dict[str, Point]]:
    """The fastest point of each series and size."""
    fastest: dict[str, dict[str, Point]] = {}
    for entry in found:
        known = fastest.setdefault(entry.series, {})
        if entry.size not in known or known[entry.size].rate < entry.rate:
            known[entry.size] = entry
    return fastest


def draw(found: Sequence[Point], title: str) -> Any:
    """A matplotlib figure, without any display. Raises InputError where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('drawing needs matplotlib; run: pip install matplotlib') from None
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (contexts, rates) in lines(found).items():
        left.plot(contexts, rates, marker="o", label=name)
    left.set(xlabel="context, tokens", ylabel="decode, tokens per second", xscale="log", yscale="log")
    left.set_title("speed against context")
    left.legend(fontsize="small")
    left.grid(True, which="both", alpha=0.3)
    sizes, fastest = list(dict.fromkeys(entry.size for entry in found)), best(found)
    width = 0.8 / len(fastest)
    for number, (series, by_size) in enumerate(fastest.items()):
        places = [sizes.index(size) + (number - (len(fastest) - 1) / 2) * width for size in by_size]
        bars = right.bar(places, [entry.rate for entry in by_size.values()], width, label=series)
        shares = ["" if entry.percent is None else f"{entry.percent:.0f} %" for entry in by_size.values()]
        right.bar_label(bars, shares, fontsize="small")
    right.set(ylabel="decode, tokens per second", yscale="log")
    right.set_xticks(range(len(sizes)), sizes)
    right.set_title("speed against size, and share of the read rate")
    right.legend(fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


@click.command("plot", cls=GemmaCommand)
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE.csv...")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
              help=f"Picture to write: {', '.join(SUFFIXES)}.")
@click.option("--title", default="", help="Line above both halves.")
def plot_command(tables: Sequence[Path], out: Path, title: str) -> None:
    """Draw tables of the matrix: speed against context, and against size."""
    if out.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"'{out}' ends in none of {', '.join(SUFFIXES)}.", param_hint="--out")
    figure, picture = draw(points(tables), title), io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower(), dpi=150)
    with into(out, "wb") as file:
        file.write(picture.getvalue())
    write(f"{out}\n")


if __name__ == "__main__":
    start(plot_command, __file__)
