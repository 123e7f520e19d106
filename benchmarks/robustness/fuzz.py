"""Fuzz everything that reads bytes from outside: mutated configs, weights, tokenizers, templates, media, command lines.

    python benchmarks/robustness/fuzz.py --cases 100000 --seed 1
    python benchmarks/robustness/fuzz.py --target config --target header --minutes 5
    python benchmarks/robustness/fuzz.py --case config:0:1f3a,77 --out findings

Each target runs in a process of its own. A case is fine when it succeeds or is refused with one line of a Gemma4Error;
everything else is a finding, which is reduced and kept with its files under --out. One line of JSON with figures is
printed for each target, and the exit code is 1 if there was a finding.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.campaign import Campaign, Figures, Finding, Limits
from fuzzing.samples import Case
from fuzzing.targets import target_names

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.options import clipped
from gemma4_core.cli.output import note, write


@click.command("fuzz", cls=GemmaCommand)
@click.option("--cases", type=click.IntRange(1), default=10_000, show_default=True, help="Shared by the targets.")
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same cases.")
@click.option("--target", "targets", cls=ManyOption, metavar="NAME…",
              help="What to fuzz: " + ", ".join(target_names()) + ", or a file with a target. Default: everything.")
@click.option("--minutes", type=float, default=None, help="Stop each target after this time.")
@click.option("--seconds", type=float, default=Limits.seconds, show_default=True,
              help="CPU time after which a case counts as a hang.")
@click.option("--memory", type=int, default=Limits.growth >> 20, show_default=True, metavar="MIB",
              help="Memory growth in one case that counts as a finding.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Targets at a time.")
@click.option("--case", "case", default=None, metavar="CASE", help="Run one case, as a finding names it, and show it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fuzz-findings"), show_default=True,
              metavar="FOLDER", help="Where the files of findings go.")
def fuzz_command(
    cases: int, seed: int, targets: tuple[str, ...], minutes: float | None, seconds: float, memory: int, jobs: int,
    case: str | None, out: Path,
) -> None:
    """Feed mutated inputs to everything that reads bytes from outside."""
    limits = Limits(seconds, max(Limits.waiting, 2 * seconds), memory << 20)
    if case is not None:
        campaign = Campaign(Case.parse(case).target, limits)
        try:
            write(json.dumps(campaign.worker.run(Case.parse(case), out.absolute() / "case"), indent=2) + "\n")
        finally:
            campaign.worker.close()
        return
    names = list(targets or target_names())
    for name in names:
        if name not in target_names() and not Path(name).is_file():
            raise click.BadParameter(f"{clipped(name)} is neither a target nor a file.", param_hint="--target")
    share = -(-cases // len(names))

    def run(name: str) -> Figures:
        figures = Campaign(name, limits, out.absolute()).run(share, seed, minutes)
        write(json.dumps({k: v for k, v in figures.as_dict().items() if k != "findings"}) + "\n")
        for finding in figures.findings:
            note(told(finding))
        return figures

    with ThreadPoolExecutor(jobs) as pool:
        ran = list(pool.map(run, names))
    found = sum(len(figures.findings) for figures in ran)
    total = {
        "target": "all", "cases": sum(f.cases for f in ran), "findings": found,
        "cases_per_minute": sum(f.cases_per_minute for f in ran) // len(ran) * min(jobs, len(ran)),
        "tracebacks": sum(f.tracebacks for f in ran), "hangs": sum(f.hangs for f in ran),
        "crashes": sum(f.crashes for f in ran), "outside": sum(f.outside for f in ran),
        "max_growth_mb": max(f.max_growth_mb for f in ran),
    }  # fmt: skip
    write(json.dumps(total) + "\n")
    if found:
        sys.exit(1)


def told(finding: Finding) -> str:
    """A finding on one line."""
    message = finding.message[:300].encode("unicode_escape").decode()
    return f"{finding.kind} x{finding.count} [{finding.type}] {finding.where} {finding.case[:120]} :: {message}"


if __name__ == "__main__":
    fuzz_command()
