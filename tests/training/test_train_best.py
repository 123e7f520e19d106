"""The best checkpoint of a run, its early end, its curve on the way, and what is left where the loss is no number."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4, usage
from safetensors.numpy import load_file
from tinygrad import Tensor
from train_tools import Place

from gemma4_core import InputError, load_pretrained
from gemma4_core.errors import CheckpointError
from gemma4_core.training import Plan
from gemma4_core.training import trainer as trainer_module
from gemma4_core.training.best import Best
from gemma4_core.training.evaluate import Evaluator
from gemma4_core.training.finite import check_finite
from gemma4_core.training.log import CsvLog, read_log
from gemma4_core.training.run_folder import RunFolder
from gemma4_plugins.commands.train import report as report_module
from gemma4_plugins.commands.train.session import Session

pytestmark = pytest.mark.usefixtures("plain_loops")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("train"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation losses that evaluations find, in order."""
    losses: list[float] = []

    def loss(self: Any, batches: Iterator[Any]) -> float:
        for _ in batches:
            pass
        return losses.pop(0)

    monkeypatch.setattr(Evaluator, "loss", loss)
    return losses


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("step-*"))


EVALUATED = ("--validation", "0.2", "--eval-every", 1)


# ---------------------------------------------------------------------------------------------------- the best one


def test_the_best_checkpoint_stays(place: Place, measured: list[float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    measured += [5, 3, 4, math.nan, 6]
    found = place.train(run, "--steps", 5, *EVALUATED, "--save-every", 1, "--keep-last", 1)
    assert steps(run) == ["step-2", "step-5"] and (run / "best").resolve().name == "step-2"
    assert (run / "last").resolve().name == "step-5"
    assert (found["best_step"], found["best_validation_loss"], found["stopped_early"]) == (2, 3, False)
    assert found["best_checkpoint"] == str(run / "step-2") and found["checkpoint"] == str(run / "step-5")
    assert load_pretrained(run / "best", device="cpu").tokenizer is not None
    # a run that goes on knows the best one, and finds a better one
    measured += [3.5, 2]
    found = json.loads(gemma4("train", "-o", run, "--resume", "--steps", 6, "--json").out)
    assert steps(run) == ["step-2", "step-6"] and found["best_step"] == 2
    found = json.loads(gemma4("train", "-o", run, "--resume", "--steps", 7, "--json").out)
    assert steps(run) == ["step-7"] and found["best_step"] == 7 and (run / "best").resolve().name == "step-7"


def test_the_best_checkpoint_is_saved_when_it_is_met(place: Place, measured: list[float], tmp_path: Path) -> None:
    measured += [5, 3, 4, 6]
    place.train(tmp_path / "run", "--steps", 4, *EVALUATED)
    assert steps(tmp_path / "run") == ["step-2", "step-4"]
    measured += [5, 3, 4, 6]
    found = place.train(tmp_path / "other", "--steps", 4, *EVALUATED, "--no-keep-best")
    assert steps(tmp_path / "other") == ["step-4"] and not (tmp_path / "other/best").exists()
    assert found["best_step"] == 2 and found["best_checkpoint"] is None
    found = place.train(tmp_path / "plain", "--steps", 1)
    assert found["best_step"] is None and found["best_checkpoint"] is None and found["stopped_early"] is False


def test_a_kill_between_saving_and_marking_is_made_up_for(
    place: Place, measured: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mark = tmp_path / "run", RunFolder.mark
    measured += [5, 4, 3]

    def killed(self: RunFolder, number: int, best: int | None = None) -> None:
        if number == 2:
            raise RuntimeError("killed")
        mark(self, number, best)

    monkeypatch.setattr(RunFolder, "mark", killed)
    assert gemma4(*place.args(run, "--steps", 3, *EVALUATED, "--keep-last", 1)).code == 1
    assert steps(run) == ["step-1", "step-2"] and (run / "best").resolve().name == "step-1"
    monkeypatch.setattr(RunFolder, "mark", mark)
    marked: list[Any] = []
    monkeypatch.setattr(RunFolder, "mark", lambda self, *args: marked.append(args) or mark(self, *args))
    assert gemma4("train", "-o", run, "--resume").code == 0
    assert marked == [(2, 2), (3, 3)] and steps(run) == ["step-3"]


def test_a_folder_of_the_users_is_never_removed(place: Place, measured: list[float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    measured += [3, 2]
    place.train(run, "--steps", 1, *EVALUATED)
    (run / "step-1/notes.txt").write_text("mine")
    (run / "best").unlink()
    (run / "best").mkdir()
    (run / "best/letter.txt").write_text("dear")
    assert gemma4("train", "-o", run, "--resume", "--steps", 2, "--keep-last", 1).code == 0
    assert steps(run) == ["step-1", "step-2"] and (run / "best/letter.txt").read_text() == "dear"


# ---------------------------------------------------------------------------------------------------- early stop


def test_early_stop(place: Place, measured: list[float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    measured += [5, 4, 3.95, 3.92, 1]
    found = place.train(run, "--steps", 9, *EVALUATED, "--early-stop", 2, "--min-delta", 0.1)
    assert found["steps"] == 4 and found["stopped_early"] and found["best_step"] == 4 and steps(run)[-1] == "step-4"
    # it stays ended, and goes on where it is asked to
    found = json.loads(gemma4("train", "-o", run, "--resume", "--json").out)
    assert found["steps"] == 4 and found["stopped_early"] and measured == [1]
    found = json.loads(gemma4("train", "-o", run, "--resume", "--early-stop", 0, "--steps", 5, "--json").out)
    assert found["steps"] == 5 and found["best_validation_loss"] == 1


def test_early_stop_is_counted_through_an_interruption(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """An interruption in the middle of an evaluation: the run that goes on does it then, and ends at the same step."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    more = ["--steps", 9, "--validation", "0.2", "--eval-every", 2, "--early-stop", 1, "--min-delta", 0.001,
            "--lr", "0.0001"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    once = place.train(straight, *more)
    assert once["stopped_early"] and once["steps"] == 4
    loss = Evaluator.loss

    def interrupted(self: Any, batches: Iterator[Any]) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batches)

    monkeypatch.setattr(Evaluator, "loss", interrupted)
    monkeypatch.setattr("gemma4_plugins.commands.train.session.HINT", None)
    ran = gemma4(*place.args(run, *more))
    assert ran.code == 130 and steps(run) == ["step-2"]
    monkeypatch.setattr(Evaluator, "loss", loss)
    twice = json.loads(gemma4("train", "-o", run, "--resume", "--json").out)
    assert twice["steps"] == 4 and twice["best_validation_loss"] == once["best_validation_loss"]
    columns = ("step", "loss", "validation_loss", "perplexity")
    logs = [[[row[name] for name in columns] for row in read_log(folder / "log.csv")] for folder in (straight, run)]
    assert logs[0] == logs[1]
    weights = [load_file(folder / "last/model.safetensors") for folder in (straight, run)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("more", [["--early-stop", 2], ["--early-stop", 2, "--eval-every", 5],
                                  ["--early-stop", 2, "--validation", "0.2"]])
def test_early_stop_needs_evaluations(place: Place, tmp_path: Path, more: list[Any]) -> None:
    assert "--early-stop needs --validation and --eval-every" in usage(*place.args(tmp_path / "run", *more))


def test_options_in_a_config_file(place: Place, measured: list[float], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('early-stop = 1\nmin-delta = 0.5\nkeep-best = false\nplot = false\nvalidation = "0.2"\n'
                      'eval-every = 1\ncolumn = []\ncallback = []\n')
    measured += [5, 4.8]
    found = place.train(tmp_path / "run", "--steps", 4, "--config", config)
    assert found["steps"] == 2 and found["stopped_early"]
    for text, says in (("early-stop = -1", "early-stop: '-1'"), ("min-delta = 'x'", "min-delta: 'x'"),
                       ("keep-best = 5", "keep-best: '5' is neither true nor false"),
                       ("column = [5]", "column: '5' is a number"), ("column = {a = [1]}", "column: 'a'")):
        config.write_text(text)
        assert says in failure(*place.args(tmp_path / "no", "--config", config))


def test_what_is_remembered_of_evaluations() -> None:
    best = Best()
    assert [best.seen(step, loss, 0.5) for step, loss in enumerate((3, 2.8, 2.6, math.nan, 2.4, math.inf), 1)] == \
        [True, True, True, False, True, False]
    assert best == Best(2.4, 5, 2.4, 1, 6) and Best.of(best.state(), 6, "x") == best and Best.of(None, 0, "x") == Best()
    assert json.loads(json.dumps(best.state())) == best.state()
    for key, value in (("step", 7), ("step", True), ("stale", None), ("stale", -1), ("loss", "x"), ("loss", math.nan),
                       ("evaluated", 1.5)):
        with pytest.raises(CheckpointError, match=f"f: evaluation: {key} "):
            Best.of(best.state() | {key: value}, 6, "f")
    for held in ({}, [], 5, {"step": 1}):
        with pytest.raises(CheckpointError, match="f: evaluation is"):
            Best.of(held, 6, "f")
    for name, value in (("early_stop", -1), ("early_stop", 1.5), ("min_delta", -1.0), ("min_delta", math.nan)):
        with pytest.raises(InputError, match=name):
            Plan(**{name: value})


def test_a_checkpoint_of_before_has_no_evaluations(place: Place, measured: list[float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    place.train(run, "--steps", 1)
    path = run / "step-1/training_state.json"
    state = json.loads(path.read_text())
    del state["training_metadata"]["evaluation"]
    path.write_text(json.dumps(state))
    measured += [5, 4]
    assert gemma4("train", "-o", run, "--resume", "--steps", 2).code == 0


# ---------------------------------------------------------------------------------------------------- no number


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step, bad = tmp_path / "run", trainer_module.train_step, [4]

    def spoilt(model: Any, optimizer: Any, *args: Any, **options: Any) -> Tensor:
        loss = step(model, optimizer, *args, **options)
        spoilt.calls += 1  # type: ignore[attr-defined]
        return loss * math.nan if spoilt.calls in bad else loss  # type: ignore[attr-defined]

    spoilt.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(trainer_module, "train_step", spoilt)
    message = failure(*place.args(run, "--steps", 9, "--save-every", 2, "--keep-last", 1))
    assert message.startswith("Error: step 4: the loss is nan, training cannot go on; use a lower --lr than 0.01")
    assert f"the last good checkpoint is step-2, continue with: gemma4 train --output-dir {run} --resume" in message
    assert steps(run) == ["step-2"] and len(read_log(run / "log.csv")) == 3
    # right behind a checkpoint: that one may be the cause, and the one before is still there
    bad[0] += 3
    message = failure("train", "-o", run, "--resume", "--lr", "0.001")
    assert "step 5: the loss is nan" in message and "step-4 (remove step-4 to go on from step-2)" in message
    assert steps(run) == ["step-2", "step-4"]
    shutil.rmtree(run / "step-4")
    assert gemma4("train", "-o", run, "--resume", "--lr", "0.001").code == 0
    assert steps(run) == ["step-9"]
    bad[0] = spoilt.calls + 1  # type: ignore[attr-defined]
    assert "; nothing was saved" in failure(*place.args(tmp_path / "other", "--steps", 2))


def test_weights_that_are_no_numbers_are_never_saved(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, after = tmp_path / "run", Session.after

    def spoilt(self: Session, report: Any, *args: Any) -> None:
        if report.step == 2:
            self.optimizer.params[0].assign(self.optimizer.params[0] * math.inf).realize()
        after(self, report, *args)

    monkeypatch.setattr(Session, "after", spoilt)
    message = failure(*place.args(run, "--steps", 4, "--save-every", 1, "--keep-last", 1))
    assert "step 2: \"model.language_model.layers.0.mlp.down_proj.weight\" holds values that are not" in message
    assert "the last good checkpoint is step-1, continue with" in message and steps(run) == ["step-1"]
    check_finite({"a": Tensor([1.0, -2.0])}, "x")
    for value in (math.nan, math.inf, 1e30):
        with pytest.raises(InputError, match=f"x: \"{'b'}\" holds"):
            check_finite({"a": Tensor([1.0]), "b": Tensor([1.0, value])}, "x")


def test_a_gradient_that_is_no_number_stops_the_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer_module.train_step

    def spoilt(model: Any, optimizer: Any, *args: Any, **options: Any) -> Tensor:
        loss = step(model, optimizer, *args, **options)
        optimizer.gradient_norm = optimizer.gradient_norm * math.inf
        return loss

    monkeypatch.setattr(trainer_module, "train_step", spoilt)
    message = failure(*place.args(tmp_path / "run", "--steps", 2))
    assert "step 1: the gradient norm is inf" in message and not steps(tmp_path / "run")


def test_data_that_are_gone_lose_no_step(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, make = tmp_path / "run", trainer_module.Batches.make
    made: list[Any] = []

    def gone(self: Any, rows: Any) -> Any:
        made.append(rows)
        if len(made) == 5:  # one is made to see whether a step fits
            raise InputError("a.png: no such file; check the path")
        return make(self, rows)

    monkeypatch.setattr(trainer_module.Batches, "make", gone)
    message = failure(*place.args(run, "--steps", 5))
    assert "a.png: no such file" in message and "step-3 is saved, continue with: gemma4 train" in message
    assert steps(run) == ["step-3"] and gemma4("train", "-o", run, "--resume").code == 0 and steps(run)[-1] == "step-5"


# ---------------------------------------------------------------------------------------------------- the curve


def test_the_curve_is_drawn_on_the_way(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report_module, "DRAW_SECONDS", 0.0)
    monkeypatch.setattr(report_module, "DRAW_SHARE", 1e9)
    run, sizes = tmp_path / "run", []
    step = report_module.Reporter.step

    def seen(self: Any, *args: Any) -> None:
        step(self, *args)
        sizes.append((run / "loss.png").read_bytes()[:4] if (run / "loss.png").exists() else None)

    monkeypatch.setattr(report_module.Reporter, "step", seen)
    assert place.train(run, "--steps", 2, "--plot")["plot"] == str(run / "loss.png") and sizes == [b"\x89PNG"] * 2
    sizes.clear()
    place.train(tmp_path / "b", "--steps", 1)

    def full(*args: object) -> bool:
        raise CheckpointError("loss.png: the disk is full")

    monkeypatch.setattr(report_module.Reporter, "step", step)
    draw = report_module.draw_curve
    calls: list[Any] = []

    def once(*args: Any) -> bool:
        calls.append(1)
        return (full if len(calls) < 2 else draw)(*args)

    monkeypatch.setattr(report_module, "draw_curve", once)
    ran = gemma4(*place.args(tmp_path / "c", "--steps", 3, "--plot"))
    assert ran.code == 0 and ran.err.count("the loss curve cannot be drawn any more") == 1 and len(calls) == 2


def test_the_curve_needs_matplotlib(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = failure(*place.args(tmp_path / "run", "--plot"))
    assert "--plot: matplotlib is not installed; install it with: pip install matplotlib" in message
    assert not (tmp_path / "run").exists()


def test_a_line_of_the_log_is_amended(tmp_path: Path) -> None:
    with CsvLog(tmp_path / "log.csv") as log:
        for number in (1, 2):
            log.add({"step": number, "loss": 0.1 * number})
        log.amend(1, {"validation_loss": 0.5})
        log.add({"step": 3, "loss": 0.3})
    rows = read_log(tmp_path / "log.csv")
    assert [(row["loss"], row["validation_loss"]) for row in rows] == [("0.1", "0.5"), ("0.2", ""), ("0.3", "")]
