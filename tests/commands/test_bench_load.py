"""``gemma4 bench load``: requests that arrive by the clock. No times are asserted."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from cli_tools import failure, gemma4, usage

from gemma4_core import InputError, LoadedModel, Scheduler, load_pretrained
from gemma4_plugins.commands.bench import arrivals, together
from gemma4_plugins.commands.bench.load_command import figures, load_command, quantile
from gemma4_plugins.devices.cpu import bandwidth

DEMO = ("bench", "load", "-m", "demo", "--device", "cpu")
CLI = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured by a test of its own."""
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda: 2e10)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_pretrained("demo", device="cpu", modalities=("text",))


def test_json() -> None:
    given = ("--parallel", 2, "--requests", 5, "--rate", 200, "-p", "3-9", "-n", "2-4", "--shared-prefix", 40)
    ran = gemma4(*DEMO, *given, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert (found["parallel"], found["requests"], found["rate"], found["seed"]) == (2, 5, 200, 0)
    assert (found["prompt_tokens_from"], found["new_tokens_to"], found["shared_prefix"]) == (3, 4, 40)
    assert 5 * 2 <= found["generated_tokens"] <= 5 * 4 and 5 * 43 <= found["prompt_tokens"] <= 5 * 49
    assert found["tokens_per_second"] == pytest.approx(found["generated_tokens"] / found["seconds"])
    assert found["requests_per_second"] == pytest.approx(5 / found["seconds"])
    assert found["prefix_hits"] == 4 and 4 * 40 <= found["reused_tokens"] < found["prompt_tokens"]
    assert 0 < found["first_token_p50"] <= found["first_token_p99"]
    assert 0 < found["gap_p50"] <= found["gap_p99"] <= found["gap_longest"]


def test_tables_and_answers_without_gaps() -> None:
    given = ("--parallel", 2, "--requests", 3, "--rate", 0, "-p", 4, "-n", 1)
    ran = gemma4(*DEMO, *given)
    assert (ran.code, ran.err) == (0, "")
    cells = [cell.strip() for cell in ran.out.splitlines()[2].strip("|").split("|")]
    assert cells[:3] == ["2", "0.00", "3"] and cells[5:8] == ["-", "-", "-"] and "cpu reads 20.0 GB/s" in ran.out
    [row] = csv.DictReader(io.StringIO(gemma4(*DEMO, *given, "-o", "csv").out))
    assert row["gap_p50"] == "" and float(row["first_token_p99"]) > 0 and row["generated_tokens"] == "3"


def test_arrivals_are_those_of_the_seed(demo: LoadedModel) -> None:
    load = arrivals.Load(4, 400, 50.0, (3, 9), (2, 5), 20, seed=7)
    found = arrivals.arrivals(demo, load)
    assert found == arrivals.arrivals(demo, load) and len(found) == 400
    assert {len(one.prompt) for one in found} == set(range(23, 30)) and {one.answer for one in found} == {2, 3, 4, 5}
    assert len({tuple(one.prompt[:20]) for one in found}) == 1 and found[0].prompt[19] in demo.config.eos_token_ids
    assert len({tuple(one.prompt[20:]) for one in found}) == 400
    gaps = np.diff([one.at for one in found])
    assert found[0].at == 0 and gaps.min() > 0 and gaps.mean() == pytest.approx(1 / 50, rel=0.2)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.2)  # as exponential ones have it
    other = arrivals.arrivals(demo, arrivals.Load(4, 400, 0.0, (3, 9), (2, 5), 0, seed=8))
    assert {one.at for one in other} == {0.0} and other[0].prompt != found[0].prompt


def test_waits_count_from_the_arrival(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second with each look shows what is counted."""
    seconds = iter(range(10_000))
    slept: list[float] = []

    def sleep(wait: float) -> None:
        slept.append(wait)
        for _ in range(600):
            next(seconds)

    coming = [arrivals.Arrival(0.0, [2, 5, 9], 3), arrivals.Arrival(500.0, [2, 7], 2)]
    with Scheduler(demo, 1, 64) as scheduler:
        monkeypatch.setattr(arrivals.time, "perf_counter", lambda: float(next(seconds)))
        monkeypatch.setattr(arrivals.time, "sleep", sleep)
        told: list[str] = []
        found = arrivals.answer(scheduler, coming, told.append)
        monkeypatch.undo()
    assert told == ["1 of 2 requests answered", "2 of 2 requests answered"]
    assert len(slept) == 1 and 0 < slept[0] < 500
    assert (found.tokens, found.prompt_tokens, len(found.first), len(found.gaps)) == (5, 5, 2, 3)
    # the second was sent late, and waited from when it should have come
    assert found.first[0] < 500 and found.first[1] > 100


def test_a_request_that_fails_ends_the_run(demo: LoadedModel) -> None:
    with Scheduler(demo, 1, 16) as scheduler, pytest.raises(InputError, match="99999999"):
        arrivals.answer(scheduler, [arrivals.Arrival(0.0, [99999999], 2)], lambda text: None)


def test_what_memory_does_not_hold(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    load = arrivals.Load(64, 1, 1.0, (3, 9), (2, 5))
    size = together.slot_bytes(demo, load.positions)
    monkeypatch.setattr(together, "free_memory_bytes", lambda device: 10 * size)
    with pytest.raises(InputError, match=r"--parallel 64: .* 8 would fit"):
        arrivals.measure(demo, load)


def test_figures_of_nothing() -> None:
    found = figures(arrivals.Load(1, 1, 1.0, (1, 1), (1, 1)), arrivals.Waits(2.0, [0.5], [], 1))
    assert found["gap_longest"] is None and found["first_token_p50"] == 0.5 and found["tokens_per_second"] == 0.5
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0


def test_faults() -> None:
    assert "'many'" in usage(*DEMO, "-p", "many")
    assert "give 5-9" in usage(*DEMO, "-p", "9-5")
    assert "'0'" in usage(*DEMO, "-n", "0-5")
    assert "'-1'" in usage(*DEMO, "--rate", "-1")
    assert "'0'" in usage(*DEMO, "--parallel", 0)
    assert "--model-dir" in usage("bench", "load")
    assert "a context of 2139" in failure(*DEMO, "-p", "10-2000", "-n", "10-139")


def test_options_are_described() -> None:
    flags = {flag for param in load_command.params for flag in param.opts}
    assert all(re.search(rf"[ `]{re.escape(flag)}\b", CLI) for flag in flags)
