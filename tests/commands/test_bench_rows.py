"""``gemma4 bench -b``: many conversations at once. No times are asserted."""

from __future__ import annotations

import json

import pytest
from cli_tools import failure, gemma4, usage

from gemma4_core import InputError, LoadedModel, Scheduler, load_pretrained
from gemma4_plugins.commands.bench import speed, together
from gemma4_plugins.devices.cpu import bandwidth

pytestmark = pytest.mark.usefixtures("plain_loops")

DEMO = ("bench", "-m", "demo", "--device", "cpu")


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured by a test of its own."""
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda: 2e10)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_pretrained("demo", device="cpu", modalities=("text",))


def test_json_has_a_row_for_each_number() -> None:
    ran = gemma4(*DEMO, "-p", 4, "-n", 2, 3, "-b", 1, 2, "-d", "0,20", "-r", 2, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert [row["test"] for row in found["results"]] == [
        "pp4", "tg2", "tg3", "tg2 @ p4 b2", "tg3 @ p4 b2",
        "pp4 @ d20", "tg2 @ d20", "tg3 @ d20", "tg2 @ d20 p4 b2", "tg3 @ d20 p4 b2",
    ]  # fmt: skip
    assert [row["batch"] for row in found["results"]] == [1, 1, 1, 2, 2] * 2
    for row in found["results"]:
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0
        assert row["tokens_per_second_each"] == row["tokens_per_second"] / row["batch"]
        assert (row["bytes_per_token"] is None) == (row["batch"] > 1 or row["new_tokens"] == 0)
    assert (found["results"][3]["prompt_tokens"], found["results"][3]["new_tokens"]) == (4, 2)
    assert found["score"] == found["results"][1]["tokens_per_second"]


def test_tables_and_conversations_alone() -> None:
    ran = gemma4(*DEMO, "-p", 0, "-n", 2, "-b", 3, "-r", 1)
    assert (ran.code, ran.err) == (0, "") and "tg2 @ p0 b3" in ran.out and "| tg2 |" not in ran.out
    assert "batch" in gemma4(*DEMO, "-p", 0, "-n", 1, "-b", 2, "-r", 1, "-o", "csv").out.splitlines()[0]


def test_all_conversations_decode_while_the_clock_runs(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, length, count = 5, 20, 6
    seen: list[list[int]] = []
    ids = speed.prompt_ids(demo, batch * length)
    prompts = [ids[at : at + length] for at in range(0, len(ids), length)]
    with Scheduler(demo, batch, together.positions(length, count, batch), prefix_bytes=0) as scheduler:
        step, submit, running = scheduler.step, scheduler.submit, []

        def watched() -> object:
            found = step()
            seen.append([len(one.answer.tokens) for one in running[batch:]])
            return found

        def noted(request: object) -> object:
            running.append(submit(request))  # type: ignore[arg-type]
            return running[-1]

        monkeypatch.setattr(scheduler, "step", watched)
        monkeypatch.setattr(scheduler, "submit", noted)
        assert together.decode(scheduler, prompts, count) > 0
        # slots are reused: a prompt runs once, but for its last token
        assert scheduler.stats().prompt_tokens == batch * length + batch and scheduler.idle
    lengths = [one for one in seen if one]
    first = next(one for one in lengths if all(one))
    last = next(one for one in lengths if all(one) and min(one) - min(first) == count)
    assert {b - a for a, b in zip(first, last, strict=True)} == {count}
    assert [one.answer.finish_reason for one in running] == ["length"] * batch + ["cancelled"] * batch
    # each answer is the one that its prompt gets alone
    alone = list(demo.generate(prompts[3], max_new_tokens=4, ignore_eos=True))
    assert running[batch + 3].answer.tokens[:4] == alone and len({tuple(ids) for ids in prompts}) == batch


def test_what_memory_does_not_hold(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    size = together.slot_bytes(demo, together.positions(8, 4, 64))
    monkeypatch.setattr(together, "free_memory_bytes", lambda device: 10 * size)
    with pytest.raises(InputError, match=r"--batch 64: .* are free; 8 would fit") as raised:
        speed.measure(demo, speed.Workload((8,), (4,), (0,), 1, (1, 64)))
    assert len(str(raised.value).splitlines()) == 1
    monkeypatch.setattr(together, "free_memory_bytes", lambda device: None)
    together.check_fits(demo, "--batch", 64, 100)


def test_faults() -> None:
    assert "'0'" in usage(*DEMO, "-b", 0)
    assert "'257'" in usage(*DEMO, "-b", 257)
    assert "-b 8 -n 0" in usage(*DEMO, "-b", 8, "-n", 0)
    assert "a context of 1111" in failure(*DEMO, "-b", 8, "-p", 1000, "-n", 103)


def test_positions_hold_what_the_longest_test_needs() -> None:
    assert speed.Workload((6,), (3,), (4,)).positions == 10
    many = speed.Workload((6, 9), (3,), (0, 4), 1, (1, 8))
    assert many.positions == 4 + 9 + 3 + together.spare(8)
    assert [case.length for case in speed.Workload((), (5,), (0,), 1, (2,)).together(0)] == [1]
