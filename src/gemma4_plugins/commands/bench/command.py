"""Measure the speed of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.checkpoint.hub import shown_name
from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import Whole, long_running
from gemma4_core.cli.output import tell
from gemma4_core.cli.tables import markdown, number
from gemma4_core.formatting import human_bytes, human_count
from gemma4_plugins.commands.bench.load_command import load_command
from gemma4_plugins.commands.bench.operations_command import ops_command
from gemma4_plugins.commands.bench.report import about, bench_options, load, print_report, same_for_all
from gemma4_plugins.commands.bench.serve_command import serve_command

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_plugins.commands.bench.speed import Result, Speed


class BenchGroup(GemmaCommand, click.Group):
    """A command that takes options and also has a sub-command."""


@click.group("bench", cls=BenchGroup, invoke_without_command=True)
@click.option("--prompt-tokens", "-p", "prompts", cls=ManyOption, separator=",", type=Whole(0), default=["512"],
              metavar="N…", help="Lengths of prompts; 0 leaves them out.  [default: 512]")
@click.option("--new-tokens", "-n", "answers", cls=ManyOption, separator=",", type=Whole(0), default=["128"],
              metavar="N…", help="Lengths of answers; 0 leaves them out.  [default: 128]")
@click.option("--depth", "-d", "depths", cls=ManyOption, separator=",", type=Whole(0), default=["0"],
              metavar="N…", help="Tokens of context before each test.  [default: 0]")
@click.option("--batch", "-b", "batches", cls=ManyOption, separator=",", type=Whole(1, 256), default=["1"],
              metavar="N…", help="Conversations that are answered at once.  [default: 1]")
@click.option("--repetitions", "-r", type=Whole(1, 1000), default=3, show_default=True, metavar="N",
              help="Runs of each test.")
@bench_options
@click.pass_context
@long_running
def bench_command(
    ctx: click.Context, prompts: Sequence[int], answers: Sequence[int], depths: Sequence[int], batches: Sequence[int],
    repetitions: int, **values: Any,
) -> None:
    """Measure the speed of a model: prompts (pp) and answers (tg) in tokens per second.

    \b
    gemma4 bench -m e2b-it
    gemma4 bench -m e2b-it -p 512 2048 -n 128 -d 0 8192 -r 5
    gemma4 bench -m ./checkpoint -p 512 -n 128 -r 3 --json
    gemma4 bench -m e2b-it -p 512 -n 128 -b 1 8 32 128
    gemma4 bench ops -m e2b-it
    gemma4 bench load -m e2b-it --parallel 8 --rate 2
    gemma4 bench serve --url http://127.0.0.1:8000/v1

    Answers are greedy and continue past stop tokens. Compiling and capturing happens before the first sample. With more
    than one conversation at once (-b) each has a prompt of its own, and the speed is that of all answers together.
    """
    if ctx.invoked_subcommand is not None:
        return
    from gemma4_plugins.commands.bench import speed

    positive = [tuple(n for n in lengths if n) for lengths in (prompts, answers)]
    if not any(positive):
        raise click.UsageError("-p 0 -n 0: there is nothing to measure.")
    if not positive[1] and max(batches) > 1:
        raise click.UsageError(f"-b {max(batches)} -n 0: conversations at once are measured by their answers.")
    workload = speed.Workload(positive[0], positive[1], tuple(depths), repetitions, tuple(batches))
    model = load(values, workload.positions)
    found = speed.measure(model, workload, tell)
    print_report(values, bench_report(model, found), table, flat)


bench_command.add_command(ops_command)
bench_command.add_command(load_command)
bench_command.add_command(serve_command)


def bench_report(model: LoadedModel, found: Speed) -> dict[str, Any]:
    """The report that ``--json`` prints; ``score`` is the speed of the first answer, else of the first prompt."""
    same, layers = about(model), model.config.text_config.num_hidden_layers
    read = same["read_bytes_per_second"]
    best = next((result for result in found.results if result.new_tokens), found.results[0])
    return same | {
        "kernels_for": {part: model.operations.name if own else "portable" for part, own in (
            ("prefill", "prefill" in found.device_steps),
            ("decode", "decode" in found.device_steps or found.layer_kernels > 0),
        )},
        "kernels_per_token": found.step_kernels or None,
        # kernels of the layers alone where the device runs them itself, else all kernels of a token
        "kernels_per_layer": (found.layer_kernels or found.step_kernels) / layers or None,
        "load_seconds": model.load_seconds,
        "first_token_seconds": found.first_token_seconds,
        "first_prompt_tokens": found.first_prompt_tokens,
        "peak_memory_bytes": found.peak_memory_bytes,
        "score": best.mean,
        "results": [result_row(result, read) for result in found.results],
    }


def result_row(result: Result, read: float | None) -> dict[str, Any]:
    """One test as JSON; rates are per token."""
    rate = result.bytes_per_second
    return {
        "test": result.test,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "depth": result.depth,
        "batch": result.batch,
        "tokens_per_second": result.mean,
        "tokens_per_second_each": result.mean / result.batch,
        "deviation": result.deviation,
        "samples": list(result.samples),
        "bytes_per_token": result.bytes_per_token,
        "gigabytes_per_second": None if rate is None else rate / 1e9,
        "percent_of_read": None if rate is None or read is None else 100 * rate / read,
    }


def flat(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per test, each with the values that all tests share."""
    same = same_for_all(report) | {f"{part}_kernels": name for part, name in report["kernels_for"].items()}
    return [same | {name: value for name, value in row.items() if name != "samples"} for row in report["results"]]


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, followed by the values that all tests share."""
    name = f"{Path(shown_name(Path(report['model']))).name} {report['format']}"
    size = human_bytes(report["weight_bytes"])
    rows = []
    for row in report["results"]:
        kernels = report["kernels_for"]["decode" if row["new_tokens"] else "prefill"]
        speed = f"{row['tokens_per_second']:.2f} ± {row['deviation']:.2f}"
        rows.append([name, size, human_count(report["parameters"]), report["device"], kernels, row["test"], speed,
                     number(row["gigabytes_per_second"]), number(row["percent_of_read"], 0)])
    head = ["model", "size", "parameters", "device", "kernels", "test", "tokens/s", "GB/s", "% of read"]
    return f"{markdown(head, rows, right=4)}\n{times_line(report)}"


def times_line(report: dict[str, Any]) -> str:
    """Load time, first token, kernel launches and memory on one line."""
    kernels = report["kernels_per_token"] or 0
    launched = f"{kernels:,} kernels a token ({report['kernels_per_layer']:.1f} a layer), " if kernels > 1 else ""
    return (
        f"loaded in {report['load_seconds']:.2f} s, first token {report['first_token_seconds']:.2f} s later (prompt of "
        f"{report['first_prompt_tokens']} tokens, compiling and capturing included), "
        f"{launched}peak memory {human_bytes(report['peak_memory_bytes'])}"
    )
