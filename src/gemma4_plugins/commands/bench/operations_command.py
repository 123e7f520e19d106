"""``gemma4 bench ops``: the speed of each operation of a model, beside its portable form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import Whole
from gemma4_core.cli.output import tell
from gemma4_core.cli.tables import markdown, number
from gemma4_core.errors import InputError
from gemma4_plugins.commands.bench.report import about, bench_options, load, print_report, same_for_all

if TYPE_CHECKING:
    from gemma4_plugins.commands.bench.operations import Line


@click.command("ops", cls=GemmaCommand)
@click.option("--only", cls=ManyOption, separator=",", metavar="NAME…",
              help="Operations to measure, such as linear,decode_step. Default: all.")
@click.option("--rows", type=Whole(1, 4096), default=1, show_default=True, metavar="N",
              help="Positions that go through an operation at once.")
@click.option("--depth", "-d", type=Whole(0), default=512, show_default=True, metavar="N",
              help="Tokens of context before them.")
@bench_options
def ops_command(only: Sequence[str], rows: int, depth: int, **values: Any) -> None:
    """Measure the operations that a model is made of, in its shapes and with its weights.

    \b
    gemma4 bench ops -m e2b-it
    gemma4 bench ops -m e2b-it --only linear,decode_step,prefill

    A line has microseconds, GB/s and percent of the device's plain read for the form in use, and the portable form
    beside it. Whole decode steps and prompts have lines of their own, since a device may take them over.
    """
    from gemma4_plugins.commands.bench import operations

    unknown = [name for name in only if name not in operations.NAMES]
    if unknown:
        raise InputError(f"--only {unknown[0]}: no such operation; there are {', '.join(operations.NAMES)}")
    model = load(values, depth + rows)
    names = tuple(only) or operations.NAMES
    lines = list(operations.measure(model, names, rows, depth, tell))
    report = about(model)
    report["operations"] = [row(line, report["read_bytes_per_second"]) for line in lines]
    print_report(values, report, table, lambda found: [same_for_all(found) | row for row in found["operations"]])


def row(line: Line, read: float | None) -> dict[str, Any]:
    """One line as JSON; rates are of the form in use."""
    rate = line.bytes_per_second
    return {
        "operation": line.operation,
        "shape": line.shape,
        "bytes": line.nbytes,
        "form": "portable" if line.seconds is None else "own",
        "microseconds": 1e6 * (line.portable_seconds if line.seconds is None else line.seconds),
        "gigabytes_per_second": rate / 1e9,
        "percent_of_read": None if read is None else 100 * rate / read,
        "portable_microseconds": 1e6 * line.portable_seconds,
        "portable_gigabytes_per_second": line.nbytes / line.portable_seconds / 1e9,
        "times_portable": None if line.seconds is None else line.portable_seconds / line.seconds,
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    rows = []
    for line in report["operations"]:
        form = report["kernels"] if line["form"] == "own" else "portable"
        rows.append([line["operation"], line["shape"], form, number(line["microseconds"]),
                     number(line["gigabytes_per_second"], 2), number(line["percent_of_read"], 0),
                     number(line["portable_microseconds"]), number(line["portable_gigabytes_per_second"], 2),
                     number(line["times_portable"])])
    head = ["operation", "shape", "form", "us", "GB/s", "% of read", "portable us", "GB/s", "times faster"]
    return markdown(head, rows, right=6)
