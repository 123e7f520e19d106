"""``gemma4 bench load``: how long people wait where requests of all lengths come at any time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import Number, Whole, long_running
from gemma4_core.cli.output import tell
from gemma4_core.cli.tables import markdown, number
from gemma4_plugins.commands.bench.report import about, bench_options, load, print_report, same_for_all

if TYPE_CHECKING:
    from gemma4_plugins.commands.bench.arrivals import Load, Waits


class WholeRange(click.ParamType):
    """A whole number, or the least and the most of a range: ``16-512``."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([0-9]{1,30})(?:-([0-9]{1,30}))?", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is neither a whole number nor a range such as 16-512.", param, ctx)
        low, high = (Whole().convert(text, param, ctx) for text in (found[1], found[2] or found[1]))
        if low > high:
            self.fail(f"{value!r} begins with the larger number; give {high}-{low}.", param, ctx)
        return low, high


@click.command("load", cls=GemmaCommand)
@click.option("--parallel", type=Whole(1, 256), default=8, show_default=True, metavar="N",
              help="Requests that are answered at once; others wait.")
@click.option("--rate", type=Number(0), default=2.0, show_default=True, metavar="R",
              help="Requests that arrive in a second, on average; 0 is all at once.")
@click.option("--requests", type=Whole(1, 1_000_000), default=32, show_default=True, metavar="N", help="How many.")
@click.option("--prompt-tokens", "-p", "prompts", type=WholeRange(), default="32-512", show_default=True,
              metavar="N|N-M", help="Lengths of prompts.")
@click.option("--new-tokens", "-n", "answers", type=WholeRange(), default="16-128", show_default=True, metavar="N|N-M",
              help="Lengths of answers.")
@click.option("--shared-prefix", "shared", type=Whole(0), default=0, show_default=True, metavar="N",
              help="Tokens before each prompt that are the same for all.")
@click.option("--seed", type=Whole(0, (1 << 32) - 2), default=0, show_default=True, metavar="N",
              help="For lengths, ids and times.")
@bench_options
@long_running
def load_command(
    parallel: int, rate: float, requests: int, prompts: tuple[int, int], answers: tuple[int, int], shared: int,
    seed: int, **values: Any,
) -> None:
    """Measure how long people wait where requests of all lengths come at any time.

    \b
    gemma4 bench load -m e2b-it
    gemma4 bench load -m e2b-it --parallel 16 --rate 4 --requests 200 --shared-prefix 1000 --json

    The report has the time to the first token, the time between tokens, and tokens and requests per second. Answers are
    greedy and continue past stop tokens. Compiling and capturing happens before the first request.
    """
    from gemma4_plugins.commands.bench import arrivals

    work = arrivals.Load(parallel, requests, rate, prompts, answers, shared, seed)
    model = load(values, work.positions)
    found = arrivals.measure(model, work, tell)
    print_report(values, about(model) | figures(work, found), table, lambda report: [same_for_all(report)])


def figures(work: Load, found: Waits) -> dict[str, Any]:
    """Settings and results of a load as JSON; without a second token there are no gaps."""
    return {
        "parallel": work.parallel,
        "requests": work.requests,
        "rate": work.rate,
        "prompt_tokens_from": work.prompts[0],
        "prompt_tokens_to": work.prompts[1],
        "new_tokens_from": work.answers[0],
        "new_tokens_to": work.answers[1],
        "shared_prefix": work.shared,
        "seed": work.seed,
        "seconds": found.seconds,
        "first_token_p50": quantile(found.first, 0.5),
        "first_token_p99": quantile(found.first, 0.99),
        "gap_p50": quantile(found.gaps, 0.5),
        "gap_p99": quantile(found.gaps, 0.99),
        "gap_longest": max(found.gaps, default=None),
        "tokens_per_second": found.tokens / found.seconds,
        "requests_per_second": work.requests / found.seconds,
        "generated_tokens": found.tokens,
        "prompt_tokens": found.prompt_tokens,
        "reused_tokens": found.reused_tokens,
        "prefix_hits": found.prefix_hits,
    }


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value that this part of all values does not exceed; None for no values."""
    import numpy as np

    return float(np.quantile(values, part)) if values else None


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table of one row; waits in milliseconds."""
    waits = [report[name] for name in ("first_token_p50", "first_token_p99", "gap_p50", "gap_p99", "gap_longest")]
    row = [str(report["parallel"]), number(report["rate"], 2), str(report["requests"]),
           *(number(None if wait is None else 1e3 * wait) for wait in waits),
           number(report["tokens_per_second"]), number(report["requests_per_second"], 2), str(report["prefix_hits"])]
    head = ["parallel", "requests/s", "requests", "first token p50 ms", "p99", "gap p50 ms", "p99", "longest",
            "tokens/s", "answers/s", "prefix hits"]
    return markdown(head, [row], right=len(head))
