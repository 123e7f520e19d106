"""``gemma4 bench serve``: how fast a server answers so many streams at once, ours or any with OpenAI's interface."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import FilePath, Number, Whole, long_running
from gemma4_core.cli.output import json_text, note, on_terminal, tell, write
from gemma4_core.cli.tables import comma_separated, markdown, number
from gemma4_core.errors import InputError
from gemma4_plugins.commands.bench.load_command import quantile
from gemma4_plugins.commands.bench.report import OUTPUTS

if TYPE_CHECKING:
    from gemma4_plugins.commands.bench.http_load import HttpResult, HttpWork

KEYS = ("GEMMA4_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key."""


@click.command("serve", cls=GemmaCommand)
@click.option("--url", default="http://127.0.0.1:8000/v1", show_default=True, metavar="URL",
              help="Where OpenAI's interface begins. A key is taken from GEMMA4_API_KEY, else OPENAI_API_KEY.")
@click.option("--model", default=None, metavar="NAME", help="Default: the first that the server lists.")
@click.option("--streams", "-s", "levels", cls=ManyOption, separator=",", type=Whole(1, 4096),
              default=["1", "2", "4", "8", "16"], metavar="N…", help="Requests at once.  [default: 1 2 4 8 16]")
@click.option("--requests", type=Whole(1, 1_000_000), default=None, metavar="N",
              help="Requests for each number of streams. Default: two for each stream, four at least.")
@click.option("--prompt-words", "-p", "words", type=Whole(1), default=256, show_default=True, metavar="N",
              help="Words of a prompt, about a token each.")
@click.option("--new-tokens", "-n", "tokens", type=Whole(2), default=64, show_default=True, metavar="N",
              help="Tokens of an answer.")
@click.option("--shared-prefix", "shared", type=Whole(0), default=0, show_default=True, metavar="N",
              help="Words before each prompt that are the same for all.")
@click.option("--seed", type=Whole(0, (1 << 32) - 1), default=0, show_default=True, metavar="N", help="For the words.")
@click.option("--timeout", type=Number(1), default=600.0, show_default=True, metavar="SECONDS",
              help="Longest request.")
@click.option("--plot", type=FilePath(), default=None, metavar="FILE", help="Draw speed and waits (PNG, SVG).")
@click.option("--output", "-o", type=click.Choice(OUTPUTS), default="md", show_default=True,
              help="How to print the report.")
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
@long_running
def serve_command(
    url: str, model: str | None, levels: Sequence[int], requests: int | None, plot: Path | None, output: str,
    as_json: bool, **values: Any,
) -> None:
    """Measure a server with OpenAI's interface, ours or another's: first token, gaps, tokens per second.

    \b
    gemma4 bench serve --url http://127.0.0.1:8000/v1
    gemma4 bench serve --url http://127.0.0.1:8000/v1 -s 1 4 16 64 256 -p 512 -n 128 --plot load.png
    gemma4 bench serve --url https://example.org/v1 --model other -s 1,8 --json

    Each of so many streams asks again as soon as it has its answer. Answers are greedy; servers that know ignore_eos go
    on past stop tokens. The first request, which may compile something, is not counted.
    """
    from gemma4_plugins.commands.bench import http_load
    from gemma4_plugins.commands.bench.http_stream import Address

    if plot is not None:
        check_plot(plot)
    address = Address.of(url)
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    name = model or asyncio.run(http_load.served_model(address, key))
    work = http_load.HttpWork(address, name, key, **values)
    found = http_load.measure(work, list(dict.fromkeys(levels)), requests, tell)
    rows = [figures(result) for result in found]
    report = about(work) | {"results": rows}
    if plot is not None:
        draw(plot, work, rows)
    if as_json or output == "json":
        write(json_text(report, indent=2) + "\n")
    elif output == "csv":
        write(comma_separated([about(work) | row for row in rows]))
    else:
        write(f"{table(rows)}\n")
    failed = next((result for result in found if result.failed), None)
    if failed is not None:
        raise InputError(f"--streams {failed.streams}: {failed.failed} requests failed: {failed.reason}")
    if on_terminal():
        note(f"{name} at {address.url}")


def about(work: HttpWork) -> dict[str, Any]:
    """What was asked, as JSON."""
    return {"url": work.address.url, "model": work.model, "prompt_words": work.words, "new_tokens": work.tokens,
            "shared_prefix": work.shared, "seed": work.seed}  # fmt: skip


def figures(result: HttpResult) -> dict[str, Any]:
    """One number of streams as JSON; seconds, None where nothing came."""
    seconds = result.seconds or 1e-9
    return {
        "streams": result.streams, "requests": result.requests, "failed": result.failed, "seconds": result.seconds,
        "first_token_p50": quantile(result.first, 0.5), "first_token_p99": quantile(result.first, 0.99),
        "gap_p50": quantile(result.gaps, 0.5), "gap_p99": quantile(result.gaps, 0.99),
        "longest_gap_p50": quantile(result.longest, 0.5), "longest_gap_p99": quantile(result.longest, 0.99),
        "generated_tokens": result.tokens, "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens, "tokens_per_second": result.tokens / seconds,
        "requests_per_second": result.requests / seconds,
    }  # fmt: skip


WAITS = ("first_token_p50", "first_token_p99", "gap_p50", "gap_p99", "longest_gap_p50", "longest_gap_p99")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table; waits in milliseconds."""
    cells = [
        [str(row["streams"]), str(row["requests"]), *(number(None if row[w] is None else 1e3 * row[w]) for w in WAITS),
         number(row["tokens_per_second"]), number(row["requests_per_second"], 2)]
        for row in rows
    ]
    head = ["streams", "requests", "first token p50 ms", "p99", "gap p50 ms", "p99", "longest gap p50 ms", "p99",
            "tokens/s", "answers/s"]  # fmt: skip
    return markdown(head, cells, right=len(head))


def check_plot(path: Path) -> None:
    """Raise InputError, before anything is measured, where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as fault:
        raise InputError(f"--plot {path}: matplotlib is not installed (pip install matplotlib)") from fault
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: the file must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")


def draw(path: Path, work: HttpWork, rows: Sequence[dict[str, Any]]) -> None:
    """Speed and waits over the number of streams."""
    from matplotlib.figure import Figure

    from gemma4_core.checkpoint.atomic import atomic_file

    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, waits = figure.subplots(1, 2)
    streams = [row["streams"] for row in rows]
    speed.plot(streams, [row["tokens_per_second"] for row in rows], marker="o")
    speed.set(xlabel="streams", ylabel="tokens/s", xscale="log", title=work.model, ylim=(0, None))
    for name, label in (("first_token_p50", "first token, p50"), ("first_token_p99", "first token, p99"),
                        ("longest_gap_p99", "longest gap, p99")):  # fmt: skip
        waits.plot(streams, [row[name] for row in rows], marker="o", label=label)
    waits.set(xlabel="streams", ylabel="seconds", xscale="log", ylim=(0, None))
    waits.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())
