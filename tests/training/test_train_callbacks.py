"""Callbacks of training: what they are told, and that one that raises loses nothing."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4
from safetensors.numpy import load_file
from train_tools import DOWN, Place, write_checkpoint, write_lines

from gemma4_core import (
    CallbackBackend,
    GemmaModel,
    InputError,
    Option,
    PluginError,
    TrainingCallback,
    build_optimizer,
    hookimpl,
    load_pretrained,
    registry,
)
from gemma4_core.errors import Gemma4Warning
from gemma4_core.training import Batches, Plan, Trainer, read_examples
from gemma4_core.training.log import read_log
from gemma4_core.training.run_folder import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("plain_loops")


class Recorder(TrainingCallback):
    """Remembers its events; raises in one of them."""

    def __init__(self, raises: str = "", error: BaseException | None = None, at: int = 2) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.raises, self.error, self.at = raises, error or ValueError("boom"), at

    def note(self, event: str, trainer: Any, *about: Any) -> None:
        self.events.append((event, trainer.step, *about))
        print("printed by a callback")
        if event == self.raises and trainer.step >= self.at:
            raise self.error

    def on_start(self, trainer: Any) -> None:
        self.note("start", trainer)

    def on_step(self, trainer: Any, report: Any) -> None:
        self.note("step", trainer)
        assert report.step == trainer.step and report.loss > 0

    def on_evaluate(self, trainer: Any, report: Any) -> None:
        self.note("evaluate", trainer, report.lowest)

    def on_checkpoint(self, trainer: Any, folder: Path) -> None:
        self.note("checkpoint", trainer, folder.name)
        assert (folder / "training_state.json").is_file()

    def on_end(self, trainer: Any, fault: BaseException | None) -> None:
        self.note("end", trainer, None if fault is None else type(fault).__name__)


class Stopper(TrainingCallback):
    """Stops a run at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, trainer: Any, report: Any) -> None:
        if report.step == self.at:
            trainer.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("train"))


@pytest.fixture
def callback() -> Iterator[list[Any]]:
    """A plugin whose callback ``mine`` is the object that a test puts here."""
    held: list[Any] = []

    def build(values: Any) -> Any:
        if isinstance(held[0], BaseException):
            raise held[0]
        held.append(dict(values))
        return held[0]

    class Plugin:
        @hookimpl
        def gemma4_training_callbacks(self) -> list[CallbackBackend]:
            option = Option("--mine-colour", "Colour.", default="red")
            return [CallbackBackend("mine", "made up here", build, (option,))]

    registry.register(Plugin(), "mine")
    yield held
    registry.unregister("mine")


def trainer_of(folder: Path, *callbacks: Any, **plan: Any) -> Trainer:
    model: GemmaModel = load_pretrained(write_checkpoint(folder / "model"), device="cpu")
    examples = read_examples(write_lines(folder / "d.jsonl"), model.processor)
    batches = Batches(examples, model.processor, batch_size=2)
    optimizer = build_optimizer(model, lr=0.01, trainable=[DOWN])
    return Trainer(model, optimizer, batches, Plan(lr=0.01, **{"steps": 3} | plan), callbacks)


def losses(run: Path) -> list[str]:
    return [row["loss"] for row in read_log(run / "log.csv")]


# ---------------------------------------------------------------------------------------------------- in Python


def test_events_come_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = trainer_of(tmp_path, recorder)
    with trainer:
        for report in trainer:
            if report.step == 2:
                trainer.evaluate(trainer.batches)
        trainer.save(tmp_path / "run")
    assert recorder.events == [
        ("start", 0), ("step", 1), ("step", 2), ("evaluate", 2, True), ("step", 3), ("checkpoint", 3, "run"),
        ("end", 3, None),
    ]
    assert trainer.best.step == 2 and trainer.settings["optimizer"] == "adamw" and trainer.settings["examples"] == 5
    json.dumps(trainer.settings)
    # without a block the end comes with the loop, also where it is left
    recorder.events.clear()
    trainer = trainer_of(tmp_path / "b", recorder, Stopper(2))
    assert [report.step for report in trainer] == [1, 2]
    assert [event[0] for event in recorder.events] == ["start", "step", "step", "end"]
    for _ in trainer:
        break
    assert [event[:2] for event in recorder.events[4:]] == [("start", 2), ("step", 3), ("end", 3)]


def test_what_a_callback_raises_comes_after_the_step(tmp_path: Path) -> None:
    bad, good = Recorder("step"), Recorder()
    trainer = trainer_of(tmp_path, bad, good)
    seen = []
    with pytest.raises(PluginError, match="callback 'Recorder' failed in on_step at step 2: ValueError: boom"):
        for report in trainer:
            seen.append(report.step)
    assert seen == [1, 2] and trainer.step == 2 and trainer.intact
    assert bad.events[-1] == ("step", 2) and good.events[-1] == ("end", 2, "PluginError")
    trainer.save(tmp_path / "run")  # and nothing is lost
    for event, error in (("start", ValueError("x")), ("end", SystemExit(3)), ("checkpoint", InputError("so"))):
        trainer = trainer_of(tmp_path / event, Recorder(event, error, 0), steps=1)
        with pytest.raises(PluginError, match=f"failed in on_{event} at step"), trainer:
            for _ in trainer:
                pass
            trainer.save(tmp_path / event / "run")
            assert event != "checkpoint"
        assert (tmp_path / event / "run").exists() == (event != "start")


def test_a_callback_that_is_not_required_is_switched_off(tmp_path: Path) -> None:
    bad, good = Recorder("step"), Recorder()
    bad.required = False
    with pytest.warns(Gemma4Warning, match="'Recorder' failed in on_step at step 2: ValueError: boom; it is switched"):
        assert [report.step for report in trainer_of(tmp_path, bad, good)] == [1, 2, 3]
    assert bad.events[-1] == ("step", 2) and good.events[-1] == ("end", 3, None)


def test_what_is_no_callback_is_refused(tmp_path: Path) -> None:
    class Typo(TrainingCallback):
        def on_stpe(self, trainer: Any, report: Any) -> None:
            pass

    class Duck:
        def on_step(self, trainer: Any, report: Any) -> None:
            self.last = report.step

    duck = Duck()
    trainer = trainer_of(tmp_path, duck, steps=1)
    for odd, says in ((Typo(), "no event is called on_stpe, did you mean 'on_step'?"), (print, "give an object"),
                      (Recorder, "give an object"), (5, "give an object")):
        with pytest.raises(InputError, match=says):
            Trainer(trainer.model, trainer.optimizer, trainer.batches, Plan(), [odd])
    with pytest.raises(InputError, match="give a list"):
        Trainer(trainer.model, trainer.optimizer, trainer.batches, Plan(), Recorder())  # type: ignore[arg-type]
    assert len(list(trainer)) == 1 and duck.last == 1


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_builds_callbacks(place: Place, callback: list[Any], tmp_path: Path) -> None:
    recorder = Recorder()
    callback.append(recorder)
    ran = gemma4(*place.args(tmp_path / "run", "--steps", 3, "--callback", "mine", "--save-every", 2,
                             "--mine-colour", "blue"))
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run/step-3'}\n") and recorder.name == "mine"
    assert callback[1] == {"mine_colour": "blue"} and set(ran.err.splitlines()) == {"printed by a callback"}
    assert recorder.events == [
        ("start", 0), ("step", 1), ("step", 2), ("checkpoint", 2, "step-2"), ("step", 3),
        ("checkpoint", 3, "step-3"), ("end", 3, None),
    ]
    recorder.events.clear()
    assert gemma4("train", "-o", tmp_path / "run", "--resume", "--steps", 4).code == 0
    assert [event[:2] for event in recorder.events] == [("start", 3), ("step", 4), ("checkpoint", 4), ("end", 4)]
    assert "--mine-colour" in gemma4("train", "--help").out and "--mine-colour" not in gemma4("generate", "--help").out


@pytest.mark.parametrize("event", ["start", "step", "evaluate", "checkpoint", "end"])
def test_a_callback_that_raises_loses_nothing(
    event: str, place: Place, callback: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.print", print)
    more = ["--steps", 4, "--validation", "0.2", "--eval-every", 2]
    place.train(tmp_path / "straight", *more)
    callback.append(Recorder(event, RuntimeError("no\nnetwork"), 0 if event == "start" else 2))
    callback[0].note = types.MethodType(lambda self, *about: quiet(self, *about), callback[0])
    message = failure(*place.args(tmp_path / "run", "--callback", "mine", *more))
    assert f"callback 'mine' failed in on_{event} at step" in message and "RuntimeError: no network" in message
    run = RunFolder(tmp_path / "run")
    if event == "start":
        assert "nothing was saved" not in message and not run.checkpoints()
        return
    step = 4 if event == "end" else 2
    assert run.newest().name == f"step-{step}" and len(losses(run.path)) == step
    if event != "end":
        assert f"step-2 is saved, continue with: gemma4 train --output-dir {run.path} --resume" in message
    callback[0].raises = ""
    assert gemma4("train", "-o", run.path, "--resume").code == 0
    assert losses(run.path) == losses(tmp_path / "straight")
    one, two = (load_file(folder / "last/model.safetensors") for folder in (tmp_path / "straight", run.path))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def quiet(self: Recorder, event: str, trainer: Any, *about: Any) -> None:
    """As ``Recorder.note``, without printing."""
    self.events.append((event, trainer.step, *about))
    if event == self.raises and trainer.step >= self.at:
        raise self.error


def test_callbacks_that_cannot_be_had(place: Place, callback: list[Any], tmp_path: Path) -> None:
    args = place.args(tmp_path / "run", "--steps", 1, "--callback")
    assert "unknown --callback 'mien', did you mean 'mine'?" in failure(*args, "mien")
    for error, says in ((InputError("no network"), "--callback mine: no network"),
                        (KeyError("x"), "--callback mine: cannot be built: KeyError")):
        callback[:] = [error]
        assert says in failure(*args, "mine")
    callback[:] = [5]
    assert "--callback mine: " in failure(*args, "mine")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- the examples


class Calls:
    """Stands for a package: remembers how its functions are called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.summary: dict[str, Any] = {}
        self.id = "abc"

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Calls:
            self.calls.append((name, args, options))
            return self

        return call

    def of(self, name: str) -> list[Any]:
        return [(args, options) for called, args, options in self.calls if called == name]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "callbacks"))
    return __import__(f"gemma4_{name}")


def run_example(name: str, place: Place, run: Path, monkeypatch: pytest.MonkeyPatch, *more: Any) -> None:
    plugin = example(name, monkeypatch)
    registry.register(plugin, name)
    try:
        args = ["--callback", name, "--validation", "0.2", "--eval-every", 1, *more]
        ran = gemma4(*place.args(run, "--steps", 2, *args))
        assert (ran.code, ran.err) == (0, ""), ran
        ran = gemma4("train", "-o", run, "--resume", "--steps", 3)
        assert (ran.code, ran.err) == (0, ""), ran
    finally:
        registry.unregister(name)


def test_the_tensorboard_writer(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, run = Calls(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)  # type: ignore[arg-type]
    run_example("tensorboard", place, run, monkeypatch)
    assert fake.of("SummaryWriter") == [((), {"logdir": str(run / "tensorboard"), "purge_step": purge})
                                        for purge in (None, 3)]
    points = [args for args, _ in fake.of("add_scalar")]
    assert [args[2] for args in points if args[0] == "train/loss"] == [1, 2, 3]
    assert [f"{args[1]}" for args in points if args[0] == "train/loss"] == losses(run)
    assert [args[2] for args in points if args[0] == "validation/loss"] == [1, 2, 3]
    assert len(fake.of("close")) == 2 and "| lr | 0.01 |" in fake.of("add_text")[0][0][1]


def test_the_wandb_writer(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, run = Calls(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run_example("wandb", place, run, monkeypatch, "--wandb-project", "mine")
    [first, again] = [options for _, options in fake.of("init")]
    assert first["project"] == again["project"] == "mine" and first["id"] is None and again["id"] == "abc"
    assert again["resume"] == "allow" and first["config"]["lr"] == 0.01
    logged = [(args[0], options["step"]) for args, options in fake.of("log")]
    assert [step for values, step in logged if "train/loss" in values] == [1, 2, 3]
    assert fake.summary["best_step"] in (1, 2, 3) and fake.of("finish") == [((), {"exit_code": 0})] * 2


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_without_its_package_says_so(
    name: str, package: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    registry.register(example(name, monkeypatch), name)
    try:
        message = failure(*place.args(tmp_path / "run", "--callback", name))
    finally:
        registry.unregister(name)
    assert f"--callback {name}: {package} is not installed; install it with: pip install {package}" in message
