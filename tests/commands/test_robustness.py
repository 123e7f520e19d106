"""A fixed slice of what benchmarks/robustness/fuzz.py tries, and that the fuzzer finds what there is to find."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "robustness"))

from fuzzing.campaign import Campaign, Figures, Limits
from fuzzing.samples import Case, folder_sample
from fuzzing.targets import target_names

CASES = 250
FAULTY = str(Path(__file__).parents[1] / "faulty_target.py")


def told(figures: Figures) -> str:
    """What was found, with the command that shows it again."""
    return "\n".join(
        f"{found.kind} ({found.type}) in {found.where}: {found.message[:300]}\n"
        f"  python benchmarks/robustness/fuzz.py --case {found.case}" for found in figures.findings
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", target_names())
def test_mutated_inputs_succeed_or_are_refused_in_one_line(target: str, tmp_path: Path) -> None:
    figures = Campaign(target, Limits(seconds=60, waiting=200), tmp_path).run(CASES)
    assert not figures.findings, told(figures)
    assert figures.cases == CASES and figures.ok + figures.refused == CASES


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    limits = Limits(seconds=5, waiting=2, growth=64 << 20)
    return Campaign(FAULTY, limits, tmp_path_factory.mktemp("findings")).run(40)


def test_every_kind_of_fault_is_found(found: Figures) -> None:
    kinds = {finding.kind for finding in found.findings}
    assert kinds == {"exception", "message", "output", "outside", "hang", "crash", "memory"}
    counted = {kind: sum(f.count for f in found.findings if f.kind == kind) for kind in kinds}
    assert (found.tracebacks, found.hangs) == (counted["exception"], counted["hang"])
    assert found.crashes == counted["crash"]
    assert found.outside >= counted["outside"] and found.max_growth_mb >= 90
    assert found.cases == 40 == found.ok + found.refused + sum(counted.values())


def test_equal_faults_are_one_finding_of_as_few_mutations_as_needed(found: Figures) -> None:
    exceptions = [finding for finding in found.findings if finding.kind == "exception"]
    assert len(exceptions) == 1 and exceptions[0].where.endswith("faulty_target.py:run")
    assert len(Case.parse(exceptions[0].case).mutations) == 2
    assert all(len(Case.parse(f.case).mutations) == 1 for f in found.findings if f.kind != "exception")


def test_a_finding_keeps_its_files_and_runs_again(found: Figures, tmp_path: Path) -> None:
    finding = next(finding for finding in found.findings if finding.kind == "exception")
    kept = Path(finding.files)
    assert json.loads((kept / "finding.json").read_text())["case"] == finding.case
    campaign = Campaign(FAULTY)
    result = campaign.worker.run(Case.parse(finding.case), tmp_path / "again")
    campaign.worker.close()
    assert (result["kind"], result["message"]) == ("exception", "a and b")
    assert folder_sample(tmp_path / "again") == folder_sample(kept / "files")
    assert sorted(folder_sample(kept / "files")["letters"]) == sorted(b"ab")


def test_equal_seeds_give_equal_cases() -> None:
    drawn = [Case.draw("config", 9, 5, number) for number in range(50)]
    assert drawn == [Case.draw("config", 9, 5, number) for number in range(50)]
    assert len(set(drawn)) == 50 and [Case.parse(str(case)) for case in drawn] == drawn
