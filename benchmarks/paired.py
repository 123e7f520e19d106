"""Run a baseline and a candidate through the same benchmark, A B A B in one session, and compare their scores.

    python benchmarks/paired.py --baseline-target main --candidate-target . --out benchmarks/paired.json \
        --label fused-norm -- --model-dir models/gemma-4-E2B --device cpu --max-new-tokens 64

A target is a git revision, a worktree, a file inside a worktree, or a command. Arguments after ``--`` go to the
benchmark, whose stdout must be one JSON object with a finite number ``score``. docs/benchmarks.md explains the rest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from payload import now, parse, run, score_of, start, write_json
from sides import TARGET, Target, command_of, find_benchmark, opened

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import Number, Whole
from gemma4_core.cli.output import note, on_terminal, write
from gemma4_core.errors import InputError

DEFAULT = "benchmarks/decode.py"


@dataclass(frozen=True)
class Side:
    """A target and the command that benchmarks it."""

    target: Target
    command: list[str]
    environment: dict[str, str]


def once(side: Side, seconds: float | None) -> dict[str, Any]:
    """One run of a side's benchmark. Raises InputError if it fails or its output is not a valid result."""
    who = f"{side.target.side} {side.target.given[:100]}"
    ended = run(side.command, side.environment, seconds)
    if ended.code is None:
        raise InputError(f"{who} was not done after {seconds:g} s (--run-seconds)")
    if ended.code:
        raise InputError(f"{who} failed, nothing was written: {ended.why}")
    found = parse(ended.out, who)
    score_of(found, who)
    return found


def compare(baseline: Side, candidate: Side, rounds: int, seconds: float | None) -> dict[str, Any]:
    """Run both sides alternately. Returns their payloads and the differences of the medians of their scores."""
    payloads: dict[str, list[dict[str, Any]]] = {"baseline": [], "candidate": []}
    for number in range(2 * rounds):
        side = (baseline, candidate)[number % 2]
        if on_terminal():
            note(f"run {number + 1} of {2 * rounds}: {side.target.side} {side.target.given}")
        payloads[side.target.side].append(once(side, seconds))
    scores = {name: [score_of(payload, name) for payload in found] for name, found in payloads.items()}
    medians = {name: statistics.median(found) for name, found in scores.items()}
    absolute = medians["candidate"] - medians["baseline"]
    relative = absolute / abs(medians["baseline"]) if medians["baseline"] else None
    return {
        "order": "AB" * rounds,
        **{side.target.side: described(side, medians[side.target.side], scores[side.target.side],
                                       payloads[side.target.side]) for side in (baseline, candidate)},
        "absolute_delta": absolute,
        "relative_delta": relative,
    }  # fmt: skip


def described(side: Side, score: float, scores: list[float], payloads: list[dict[str, Any]]) -> dict[str, Any]:
    """A side in the artefact: ``payload`` is its last, ``payloads`` are all of them."""
    target = side.target
    return {
        "target": target.given,
        "worktree": str(target.worktree) if target.worktree else None,
        "file": str(target.file) if target.file else None,
        "revision": target.revision,
        "command": side.command,
        "environment": {name: value for name, value in side.environment.items() if name == TARGET},
        "score": score,
        "scores": scores,
        "payload": payloads[-1],
        "payloads": payloads,
    }


def check_delta(found: dict[str, Any], least: float | None) -> None:
    """Raise InputError if the candidate is not better by this much."""
    if least is not None and found["absolute_delta"] < least:
        raise InputError(f"--min-delta {least:g}: the candidate's score differs by {found['absolute_delta']:.4g} "
                         f"({found['candidate']['score']:.4g} against {found['baseline']['score']:.4g})")


@click.command("paired", cls=GemmaCommand)
@click.option("--baseline-target", "--baseline", "baseline", metavar="TARGET",
              help="Git revision, worktree, file inside a worktree, or command.")
@click.option("--candidate-target", "--candidate", "candidate", metavar="TARGET", help="The same for the candidate.")
@click.option("--baseline-command", metavar="COMMAND", help="Command line of the baseline's benchmark.")
@click.option("--candidate-command", metavar="COMMAND", help="Command line of the candidate's benchmark.")
@click.option("--benchmark", default=DEFAULT, show_default=True, metavar="SCRIPT",
              help="Script that runs on both targets, looked up here and then in the baseline's worktree.")
@click.option("--rounds", type=Whole(1, 1000), default=2, show_default=True, help="Runs of each side, alternating.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE.json",
              help="Artefact to write. Default: stdout.")
@click.option("--label", default=None, help="Name of the comparison, kept in the artefact.")
@click.option("--min-delta", type=Number(float("-inf")), default=None,
              help="Exit with code 1, after writing, if candidate minus baseline is below this.")
@click.option("--run-seconds", type=Number(0, above=True), default=None, help="End a run that takes longer.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS...]")
def paired_command(
    baseline: str | None, candidate: str | None, baseline_command: str | None, candidate_command: str | None,
    benchmark: str, rounds: int, out: Path | None, label: str | None, min_delta: float | None,
    run_seconds: float | None, arguments: Sequence[str],
) -> None:  # fmt: skip
    """Run a benchmark on a baseline and a candidate alternately, and write both payloads and the difference."""
    given = {"baseline": (baseline, baseline_command), "candidate": (candidate, candidate_command)}
    for side, (target, command) in given.items():
        if (target is None) == (command is None):
            raise click.UsageError(f"give either --{side}-target or --{side}-command.")
    began = now()
    with (
        opened("baseline", baseline, baseline_command) as one,
        opened("candidate", candidate, candidate_command) as other,
    ):
        script = None if one.command and other.command else find_benchmark(benchmark, one)
        sides = [Side(target, *command_of(target, script, arguments)) for target in (one, other)]
        found = compare(*sides, rounds, run_seconds)
    found = {"label": label, "started": began, "finished": now(), "benchmark": str(script) if script else None,
             "arguments": list(arguments), "min_delta": min_delta, **found}  # fmt: skip
    if out is None:
        write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    else:
        write_json(out, found)
        write(json.dumps({"label": label, "baseline": found["baseline"]["score"], "out": str(out),
                          "candidate": found["candidate"]["score"], "absolute_delta": found["absolute_delta"],
                          "relative_delta": found["relative_delta"]}) + "\n")  # fmt: skip
    check_delta(found, min_delta)


if __name__ == "__main__":
    start(paired_command, __file__)
