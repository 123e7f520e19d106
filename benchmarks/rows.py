"""Several conversations at once on one device: what each number of rows costs, beside one row of the same minutes.

    python benchmarks/rows.py --model-dir models/gemma-4-E2B --device cpu --rows 1 2 4 8 16 --rounds 3

All numbers of rows are measured in turn, round after round, and a rate is the median of the rounds: tokens per second
of all conversations together, their ratio to one row, and the bytes of weights of a pass times passes per second.
With ``--llama-batched-bench`` and ``--gguf`` the same numbers of rows run in llama.cpp, in turn with ours.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import click
from bandwidth import measured
from payload import revision, run, start

import gemma4_core
from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import Whole, device_options, model_option
from gemma4_core.cli.output import note, on_terminal
from gemma4_core.cli.tables import markdown
from gemma4_core.errors import InputError


class Ours:
    """The rates of one loaded model."""

    def __init__(self, model: str, device: str, prompt: int, count: int, beam: int, seconds: float | None) -> None:
        from gemma4_core import load_pretrained
        from gemma4_plugins.commands.bench.traffic import weight_bytes

        self.model = load_pretrained(model, device=device, modalities=("text",), beam=beam, beam_seconds=seconds)
        self.prompt, self.count, self.weight_bytes = prompt, count, weight_bytes(self.model)

    def rate(self, rows: int) -> float:
        """Tokens per second of all conversations together."""
        from gemma4_plugins.commands.bench.speed import Together, measure_together

        case = Together(rows, self.prompt, self.count, 0)
        return measure_together(self.model, case, 1, lambda text: None).mean


def llama_rates(
    program: str, gguf: str, prompt: int, count: int, rows: Sequence[int], threads: int
) -> dict[int, float]:
    """Tokens per second of llama.cpp's batched bench by rows, the prompts left out."""
    found = shutil.which(program)
    if found is None:
        raise InputError(f"--llama-batched-bench {program} is no program; build llama.cpp and name it")
    most = max(rows) * (prompt + count)
    given = [found, "-m", gguf, "-c", str(most), "-b", "2048", "-ub", "512", "-npp", str(prompt), "-ntg", str(count),
             "-npl", ",".join(map(str, rows)), "-t", str(threads), "-tb", str(threads), "-ngl", "0"]  # fmt: skip
    ended = run(given)
    if ended.code:
        raise InputError(f"{program} failed: {ended.why[:200]}")
    return parse_batched(ended.out)


def parse_batched(text: str) -> dict[int, float]:
    """The column S_TG by the column B of the table that llama.cpp prints."""
    lines = [re.findall(r"[\w/.]+", line) for line in text.splitlines() if line.startswith("|")]
    head = next((cells for cells in lines if "B" in cells), None)
    table = [cells for cells in lines if cells and cells[0].isdigit()]
    if head is None or not table:
        raise InputError("llama.cpp's batched bench printed no table")
    speed = 7  # PP, TG, B, N_KV, T_PP s, S_PP t/s, T_TG s, S_TG t/s, T s, S t/s
    return {int(cells[2]): float(cells[speed]) for cells in table}


def rounds_of(
    ours: Ours, rows: Sequence[int], rounds: int, theirs: Callable[[], dict[int, float]] | None,
    tell: Callable[[str], None],
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Rates of both by rows, one for each round."""
    mine: dict[int, list[float]] = {count: [] for count in rows}
    peer: dict[int, list[float]] = {count: [] for count in rows}
    for number in range(rounds):
        for count in rows:
            tell(f"round {number + 1} of {rounds}: {count} rows")
            mine[count].append(ours.rate(count))
        if theirs is not None:
            tell(f"round {number + 1} of {rounds}: llama.cpp")
            for count, rate in theirs().items():
                peer[count].append(rate)
    return mine, peer


@click.command("rows", cls=GemmaCommand)
@model_option()
@device_options
@click.option("--rows", cls=ManyOption, separator=",", type=Whole(1, 256), default=["1", "2", "4", "8", "16"],
              metavar="N…", help="Conversations at once.  [default: 1 2 4 8 16]")
@click.option("--prompt-length", type=Whole(), default=64, show_default=True, help="Tokens before the measured ones.")
@click.option("--max-new-tokens", type=Whole(), default=32, show_default=True, help="Tokens of each conversation.")
@click.option("--rounds", type=Whole(1, 100), default=3, show_default=True, help="Runs of each number, in turn.")
@click.option("--llama-batched-bench", default=None, metavar="PROGRAM", help="llama.cpp's, to run beside ours.")
@click.option("--gguf", default=None, metavar="FILE", help="The same weights for llama.cpp.")
@click.option("--bandwidth/--no-bandwidth", default=True, show_default=True,
              help="Measure the device's read rate before and after.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rows_command(
    model: str, device: str, beam: int, beam_seconds: float | None, rows: Sequence[int], prompt_length: int,
    max_new_tokens: int, rounds: int, llama_batched_bench: str | None, gguf: str | None, bandwidth: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure what 1, 2, 4, … conversations at once reach together."""
    from gemma4_core.devices.machine import thread_count

    if (llama_batched_bench is None) != (gguf is None):
        raise InputError("--llama-batched-bench and --gguf belong together; give both")
    theirs: Callable[[], dict[int, float]] | None = None
    if llama_batched_bench is not None and gguf is not None:
        program, file = llama_batched_bench, gguf
        theirs = lambda: llama_rates(program, file, prompt_length, max_new_tokens, rows, thread_count())  # noqa: E731
    ours = Ours(model, device, prompt_length, max_new_tokens, beam, beam_seconds)
    before = measured(device) if bandwidth else None
    mine, peer = rounds_of(ours, rows, rounds, theirs, note if on_terminal() else lambda text: None)
    after = measured(device) if bandwidth else None
    report = report_of(ours, mine, peer) | {
        "read_gbps_before": before, "read_gbps_after": after, "device": ours.model.device_name,
        "format": ours.model.format_name, "prompt_tokens": prompt_length, "new_tokens": max_new_tokens,
    }
    if as_json:
        print(json.dumps(report | {"revision": revision(gemma4_core.__path__[0])}, allow_nan=False))
        return
    print(as_markdown(report))


def report_of(ours: Ours, mine: dict[int, list[float]], peer: dict[int, list[float]]) -> dict[str, Any]:
    """Medians by rows with their ratios."""
    one = statistics.median(mine[min(mine)]) / min(mine)
    lines = []
    for count, rates in mine.items():
        rate, other = statistics.median(rates), statistics.median(peer[count]) if peer[count] else None
        lines.append({
            "rows": count, "tokens_per_second": rate, "samples": rates, "ratio": rate / one,
            "weights_gbps": ours.weight_bytes * rate / count / 1e9, "llama_cpp": other,
            "of_llama_cpp": rate / other if other else None,
        })  # fmt: skip
    return {"lines": lines, "weight_bytes": ours.weight_bytes}


def as_markdown(report: dict[str, Any]) -> str:
    """The table that a page quotes."""
    shown = lambda value, form: "" if value is None else format(value, form)  # noqa: E731
    heads = ["rows", "tok/s together", "of one row", "weights, GB/s", "llama.cpp", "of llama.cpp"]
    cells = [[str(line["rows"]), shown(line["tokens_per_second"], ".2f"), shown(line["ratio"], ".2f"),
              shown(line["weights_gbps"], ".1f"), shown(line["llama_cpp"], ".2f"), shown(line["of_llama_cpp"], ".2f")]
             for line in report["lines"]]  # fmt: skip
    before, after = (shown(report[f"read_gbps_{when}"], ".1f") for when in ("before", "after"))
    title = (f"{report['format']} on {report['device']}, {report['new_tokens']} tokens after "
             f"{report['prompt_tokens']}, read {before} GB/s before, {after} after")  # fmt: skip
    return f"{title}\n\n{markdown(heads, cells, len(heads))}"


if __name__ == "__main__":
    start(rows_command, __file__)
