"""``gemma4 train`` on a tiny checkpoint: what it learns, writes and prints, and how it goes on."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4, parts, usage
from safetensors.numpy import load_file, save_file
from train_tools import DOWN, LINES, Place, write_lines
from training_tools import quick, snapshot

from gemma4_core import ModelTransform, Option, TrainedPart, hookimpl, load_pretrained, registry
from gemma4_core.errors import CheckpointError
from gemma4_core.generation.loaded_model import LoadedModel
from gemma4_core.training.log import COLUMNS, CsvLog, read_log
from gemma4_core.training.run_folder import RunFolder
from gemma4_plugins.commands.train import report as train_report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("train"))


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def straight(place: Place) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Six steps without a stop, with everything on the way."""
    output = place.folder / "straight"
    with quick(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(LoadedModel, "stream_generate", lambda self, asked, **options: parts(f"{asked} {options}"))
        summary = place.train(
            output, "--steps", 6, "--save-every", 2, "--validation", "0.2", "--eval-every", 3,
            "--sample-prompt", "One?", "--sample-tokens", 2, "--schedule", "cosine", "--warmup", 2,
        )
    yield output, summary


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def losses(output: Path) -> list[str]:
    return [row["loss"] for row in read_log(output / "log.csv")]


# ---------------------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_run_learns_and_leaves_a_checkpoint_that_opens(place: Place, straight: tuple[Path, dict[str, Any]]) -> None:
    output, summary = straight
    assert summary["checkpoint"] == str(output / "step-6") and summary["steps"] == 6 and summary["captures"] == 1
    assert summary["examples"] == 4 and summary["trained_parameters"] == 32 * 32 and summary["optimizer"] == "adamw"
    rows = read_log(output / "log.csv")
    assert list(rows[0]) == list(COLUMNS) and [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row["lr"]) for row in rows[:2]] == [0.005, 0.01] and float(rows[5]["lr"]) < 0.004
    assert [bool(row["validation_loss"]) for row in rows] == [False, False, True, False, False, True]
    assert summary["validation_loss"] == float(rows[5]["validation_loss"])
    assert summary["perplexity"] == pytest.approx(np.exp(summary["validation_loss"]))
    assert all(float(row["gradient_norm"]) > 0 and int(row["targets"]) > 0 for row in rows)
    assert sorted(path.name for path in output.glob("step-*")) == ["step-4", "step-6"]
    assert (output / "last").resolve().name == "step-6"
    before, after = weights(place.model), weights(output / "last")
    assert {name for name, value in after.items() if not np.array_equal(value, before[name])} == {DOWN}
    for folder in (output / "last", output):
        opened = load_pretrained(folder, device="cpu")
        assert opened.tokenizer is not None and np.array_equal(snapshot(opened)[DOWN], after[DOWN])
    [sample] = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    asked = "[{'role': 'user', 'content': 'One?'}] {'max_new_tokens': 2}"
    assert sample == {"step": 6, "prompt": "One?", "text": asked}
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (summary["plot"] is not None) == drawn == (output / "loss.png").exists()


def test_the_loss_falls_with_packing_and_accumulation(place: Place, tmp_path: Path) -> None:
    summary = place.train(tmp_path / "run", "--steps", 8, "--pack", "--accumulate", 2, "--optimizer", "sgd",
                          "--optimizer-option", "momentum=0.5", "--lr", "0.5", "--batch-size", 1)
    found = [float(loss) for loss in losses(tmp_path / "run")]
    assert found[-1] < found[0] - 0.1 and summary["optimizer"] == "sgd"
    assert "momentun" in failure(*place.args(tmp_path / "no", "--optimizer-option", "momentun=1"))


def test_stdout_is_the_checkpoint(place: Place, tmp_path: Path) -> None:
    ran = gemma4(*place.args(tmp_path / "run", "--steps", 1))
    assert (ran.code, ran.out, ran.err) == (0, f"{tmp_path / 'run/step-1'}\n", "")


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.slow
def test_three_and_three_steps_are_six(place: Place, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    place.train(once, "--steps", 6, "--accumulate", 2)
    place.train(twice, "--steps", 3, "--accumulate", 2)
    assert failure(*place.args(twice, "--steps", 6)).endswith("go on with --resume, or give another folder")
    summary = json.loads(gemma4("train", "-o", twice, "--resume", "--steps", 6, "--json").out)
    assert summary["resumed_from"] == 3 and summary["steps"] == 6
    assert losses(once) == losses(twice)
    one, two = (weights(folder / "last") for folder in (once, twice))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    state = [load_file(folder / "last/training_state.safetensors") for folder in (once, twice)]
    assert all(np.array_equal(state[0][name], state[1][name]) for name in state[0])
    done = json.loads(gemma4("train", "-o", twice, "--resume", "--json").out)
    assert done["steps"] == 6 and done["loss"] is None
    for option, value in (("--seed", 1), ("--batch-size", 1), ("--data", write_lines(tmp_path / "o.jsonl", LINES[:2]))):
        assert "not what the run began with" in failure("train", "-o", twice, "--resume", "--steps", 9, option, value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_and_says_how_to_go_on(
    number: int, place: Place, straight: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    output, step = tmp_path / "run", train_report.Reporter.step
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))  # started by nohup, this process ignores SIGHUP
    more = ["--validation", "0.2", "--eval-every", 3, "--schedule", "cosine", "--warmup", 2]

    def interrupted(self: Any, report: Any, validation: Any) -> None:
        step(self, report, validation)
        if report.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train_report.Reporter, "step", interrupted)
    # it goes past what the test runner captures
    monkeypatch.setattr("gemma4_plugins.commands.train.session.HINT", None)
    ran = gemma4(*place.args(output, "--steps", 6, *more))
    assert (ran.code, ran.out) == (128 + number, "")
    assert f"gemma4 train --output-dir {output} --resume" in ran.err and "step 2 of 6" in ran.err
    assert [path.name for path in output.glob("step-*")] == ["step-2"]
    monkeypatch.setattr(train_report.Reporter, "step", step)
    with open(output / "log.csv", "a") as log:
        log.write("3,1,9.9,0.1\n4,1,0.")  # a later step, and a line that was cut
    assert gemma4("train", "--output-dir", output, "--resume").code == 0
    assert losses(output) == losses(straight[0])
    one, two = (weights(folder / "last") for folder in (straight[0], output))
    assert all(np.array_equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("name", "text"), [
    ("run.toml", 'model-dir = "{model}"\ndata = "{data}"\nlr = 0.5\nbatch_size = 2\ntrainable = ["*down*", "*up*"]\n'),
    ("run.yaml", 'model-dir: "{model}"\ndata: "{data}"\nlr: 5e-1\nbatch-size: 2\ntrainable: "*down*"\nsteps:\n'),
])
@pytest.mark.usefixtures("counts_alone")
def test_options_from_a_file(place: Place, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text.format(model=place.model, data=place.data))
    found = json.loads(gemma4("train", "--config", path, "--dry-run", "--json").out)
    assert found["steps"] == 3 and found["examples"] == 5
    found = json.loads(gemma4("train", "--config", path, "--dry-run", "--json", "--batch-size", 5, "--steps", 7).out)
    assert found["steps"] == 7 and found["lengths"] == [32]


@pytest.mark.parametrize(("name", "text", "says"), [
    ("c.toml", "batch-sise = 1\n", "unknown key 'batch-sise', did you mean 'batch-size'?"),
    ("c.toml", "lr = \n", "not valid"),
    ("c.yaml", "lr: fast\n", "lr: 'fast' is not a number"),
    ("c.yaml", "lr: [1, 2]\n", "lr: '[1, 2]' is not a single value"),
    ("c.yaml", "- lr\n", "must hold options"),
    ("c.yaml", "schedule: square\n", "square"),
    ("c.ini", "lr=1", "ends in .toml"),
])
def test_a_faulty_file_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    message = failure("train", "--config", path)
    assert name in message and says in message
    assert "absent.toml" in failure("train", "--config", tmp_path / "absent.toml")


@pytest.mark.usefixtures("counts_alone")
def test_dry_run_shows_what_is_learnt(place: Place, tmp_path: Path) -> None:
    ran = gemma4("train", "-m", place.model, "--data", place.data, "--dry-run")
    assert ran.code == 0 and "train.jsonl:1, learnt between" in ran.out and "»one<turn|>«" in ran.out
    assert "steps               5\n" in ran.out


@pytest.mark.parametrize(("more", "says"), [
    (["--steps", 3, "--epochs", 1], "at most one of --steps and --epochs"),
    (["--validation", "1.5"], "'--validation': '1.5': give a file, or a share"),
    (["--sample-every", 3], "--sample-every needs --sample-prompt"),
    (["--optimizer-option", "momentum"], "--optimizer-option 'momentum'"),
    (["--lr", "nan"], "'nan'"),
    (["--image", "x.png"], "--image"),
])
def test_usage(place: Place, tmp_path: Path, more: list[Any], says: str) -> None:
    assert says in usage(*place.args(tmp_path / "run", *more))
    assert "--output-dir" in usage("train", "-m", place.model, "--data", place.data)


@pytest.mark.parametrize(("more", "says"), [
    (["--data", "absent.jsonl"], "absent.jsonl: No such file"),
    (["--validation", "absent.jsonl"], "absent.jsonl: No such file"),
    (["--trainable", "*.nonsense"], "*.nonsense"),
    (["--frozen", "*"], "nothing would train"),
    (["--optimizer", "adamx"], "adamx"),
    (["--warmup", 99], "--warmup 99"),
    (["--max-length", 9999], "--max-length 9999"),
    (["--modality", "vision"], "vision"),
    (["--resume"], "no checkpoint"),
])
def test_failures_come_before_weights_are_read(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[Any], says: str
) -> None:
    monkeypatch.setattr("gemma4_core.loading.read_text", lambda *a, **k: pytest.fail("weights were read"))
    assert says in failure(*place.args(tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_written(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with monkeypatch.context() as patched:
        patched.setattr("gemma4_core.loading.read_text", lambda *a, **k: pytest.fail("weights were read"))
        assert "file: is a file" in failure(*place.args(tmp_path / "file"))
        assert "file/run" in failure(*place.args(tmp_path / "file/run"))
        assert "mine: is not empty" in failure(*place.args(tmp_path / "mine"))

        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        patched.setattr("gemma4_core.training.run_folder.atomic_file", refuse)
        assert "Permission denied" in failure(*place.args(tmp_path / "closed"))
    output = tmp_path / "run"
    place.train(output, "--steps", 1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gemma4_core.training.checkpoint.write_state", full)
    message = failure("train", "-o", output, "--resume", "--steps", 2)
    assert "the disk is full" in message and "step-2" in message
    monkeypatch.undo()
    assert [path.name for path in output.glob("*step*")] == ["step-1"]
    assert gemma4("train", "-o", output, "--resume", "--steps", 2).code == 0


def test_a_loss_that_is_no_number_stops_the_run(place: Place, tmp_path: Path) -> None:
    message = failure(*place.args(tmp_path / "run", "--lr", "3e38", "--clip", 0, "--optimizer", "sgd", "--steps", 9))
    assert "the loss is" in message and "--lr" in message
    assert not RunFolder(tmp_path / "run").checkpoints()


def test_the_log_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with CsvLog(path) as log:
        log.add({"step": 1, "loss": 0.1 + 0.2})
        log.add({"step": 2, "loss": 1.0})
    with CsvLog(path, after=1) as log:
        log.add({"step": 2, "loss": 3.0})
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], float(row["loss"])) for row in rows] == [("1", 0.1 + 0.2), ("2", 3.0)]


# ---------------------------------------------------------------------------------------------------- plugins


class Shift:
    """A transform that trains one tensor of its own, which is added to a matrix."""

    def apply(self, model: Any, values: Any) -> None:
        from tinygrad import Tensor

        from gemma4_core import DenseMatrix

        shift = Tensor.zeros(1, 32, device=model.device).contiguous().realize()
        base = model.places[DOWN].matrix.dense()

        class Shifted(DenseMatrix):
            def matmul(self, x: Tensor) -> Tensor:
                return super().matmul(x) + x.linear(shift.transpose()).cast(x.dtype)

            def parts(self) -> dict[str, Tensor]:
                return {"": self.tensor, ".shift": shift}

        model.places[DOWN].matrix = Shifted(base)
        model.invalidate()

    def part(self, model: Any, values: Any) -> TrainedPart:
        shift = model.places[DOWN].matrix.parts()[".shift"]

        def load(folder: Path) -> None:
            from tinygrad import Tensor

            shift.assign(Tensor(np.load(folder / "shift.npy"), device=shift.device)).realize()

        return TrainedPart({"shift": shift}, lambda folder: np.save(folder / "shift.npy", shift.numpy()), load)

    @hookimpl
    def gemma4_model_transforms(self) -> list[ModelTransform]:
        option = Option("--shift", "Learn a shift.", type=bool, default=False)
        return [ModelTransform("shift", "adds a row", self.apply, (option,), trained_part=self.part)]


def test_a_transform_says_what_trains_and_is_saved(place: Place, tmp_path: Path) -> None:
    registry.register(Shift(), "shift")
    try:
        asked = ["-m", place.model, "--data", place.data, "--lr", "0.1", "--max-length", 32, "--shift", "--json",
                 "--device", "cpu", "--batch-size", 2]
        assert "--shift" in gemma4("train", "--help").out
        once = json.loads(gemma4("train", *asked, "-o", tmp_path / "once", "--steps", 4).out)
        assert once["trained_parameters"] == 32 and once["frozen_parameters"] > 10000
        names = {path.name for path in (tmp_path / "once/last").iterdir()}
        assert names == {"shift.npy", "training_state.json", "training_state.safetensors"}
        gemma4("train", *asked, "-o", tmp_path / "twice", "--steps", 2)
        ran = gemma4("train", "-o", tmp_path / "twice", "--resume", "--steps", 4, "--json")
        assert ran.code == 0, ran
        assert json.loads(ran.out)["resumed_from"] == 2 and losses(tmp_path / "once") == losses(tmp_path / "twice")
        found = [np.load(tmp_path / name / "last/shift.npy") for name in ("once", "twice")]
        assert np.array_equal(*found) and found[0].any()
        assert "nothing*" in failure("train", *asked, "-o", tmp_path / "no", "--trainable", "nothing*")
    finally:
        registry.unregister("shift")


# ---------------------------------------------------------------------------------------------------- values of files

BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 30))


@pytest.mark.parametrize(("name", "text", "says"), [
    ("c.yaml", "data: 1.5", "data: '1.5' is a number"),
    ("c.yaml", "data: true", "data: 'true' is true or false"),
    ("c.yaml", "data: 0", "data: '0' is a number"),
    ("c.yaml", "data: ''", "data: '' is not a path"),
    ("c.yaml", 'data: "a\\0b"', "data: 'a\\x00b' has a NUL"),
    ("c.json", '{"data": "\\ud800"}', "data: '\\ud800' is not UTF-8"),
    ("c.json", '{"model": "\\ud800"}', "model: '\\ud800' is not UTF-8"),
    ("c.yaml", f"data: {'9' * 5000}", "data: the number has thousands of digits"),
    ("c.toml", f"lr = {'9' * 5000}", "lr: the number has thousands of digits"),
    ("c.json", f'{{"steps": {"9" * 5000}}}', "steps: the number has thousands of digits"),
    ("c.yaml", f"steps: 0x{'f' * 5000}", "steps: a number of 20000 bits is out of range"),
    ("c.yaml", f"data: {'9' * 3000}", "is out of range"),
    ("c.yaml", "data: [*a]", "aliases such as *name are not supported"),
    ("c.yaml", BOMB, "aliases such as *name are not supported"),
    ("c.yaml", "data: {a: 1}", "data: '{\"a\": 1}' is not a single value"),
    ("c.yaml", "data: 2024-01-01", "is not a single value"),
    ("c.yaml", "data: !!set {a, b}", "is not a single value"),
    ("c.yaml", "lr: 1\nlr: 2", "the key 'lr' is given twice"),
    ("c.json", '{"lr": 1, "lr": 2}', "the key 'lr' is given twice"),
    ("c.toml", "lr = 1\nlr = 2", "not valid"),
    ("c.yaml", "lr: " + "[" * 400 + "]" * 400, "nested too deeply"),
    ("c.json", '{"lr": ' + "[" * 60000 + "]" * 60000 + "}", "nested too deeply"),
    ("c.yaml", "lr: true", "lr: 'true' is not a number"),
    ("c.yaml", "lr: -1", "lr: '-1' is not a finite number"),
    ("c.yaml", "lr: .nan", "lr: 'nan' is not a finite number"),
    ("c.toml", "lr = inf", "lr: 'inf' is not a finite number"),
    ("c.json", '{"lr": NaN}', "lr: 'nan' is not a finite number"),
    ("c.yaml", "steps: 2.5", "steps: '2.5' is not a whole number"),
    ("c.yaml", "beam: -5", "beam: '-5' is neither a whole number"),
    ("c.yaml", "pack: 2", "pack: '2' is neither true nor false"),
    ("c.yaml", "pack: often", "pack: 'often' is neither true nor false"),
    ("c.yaml", "validation: 1.5", "validation: '1.5': give a file, or a share"),
    ("c.yaml", "validation: true", "validation: 'true' is true or false"),
    ("c.yaml", "optimizer: 3", "optimizer: '3' is a number"),
    ("c.yaml", "trainable: [a, [b]]", "trainable: '[\"b\"]' is not a single value"),
    ("c.yaml", "sample-prompt: 5", "sample-prompt: '5' is a number"),
    ("c.yaml", "schedule: [1]", "schedule: '[1]' is not a single value"),
    ("c.yaml", "lr: 1 #" + "x" * (200 << 10), "larger than 128 KiB"),
])
def test_a_value_of_the_wrong_kind_names_its_option(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    message = failure("train", "--config", path)
    assert name in message and says in message


@pytest.mark.parametrize(("key", "value"), [
    ("data", 1.5), ("data", True), ("data", 0), ("data", [1]), ("data", "a\0b"), ("lr", "x"), ("lr", [1]), ("pack", 7),
    ("batch_size", -1), ("steps", 10**400), ("trainable", [[]]), ("plugin_adaptor", "x"),
])
def test_damaged_settings_of_a_run_are_named(place: Place, tmp_path: Path, key: str, value: Any) -> None:
    run = tmp_path / "run"
    (run / "step-1").mkdir(parents=True)
    (run / "step-1/training_state.json").write_text("{}")
    (run / "settings.json").write_text(json.dumps({"model": str(place.model), "data": str(place.data), key: value}))
    message = failure("train", "-o", run, "--resume")
    assert "settings.json" in message and (key in message or "--adaptor" in message)


@pytest.mark.parametrize("option", ["--data", "--output-dir", "--validation"])
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800"])
def test_paths_that_are_none_are_usage_errors(place: Place, tmp_path: Path, option: str, value: str) -> None:
    assert "is not a path" in usage(*place.args(tmp_path / "run", option, value))


# ---------------------------------------------------------------------------------------------------- state of a run


STATE = ("training_metadata",)


@pytest.fixture(scope="module")
def stopped(place: Place) -> Path:
    """A run of three steps, to be copied."""
    with quick():
        place.train(place.folder / "stopped", "--steps", 3)
    return place.folder / "stopped"


@pytest.mark.parametrize(("keys", "value", "says"), [
    ((*STATE, "step"), 99, "step 99 already and ends at 3"),
    ((*STATE, "step"), -1, "step -1 is not a whole number"),
    ((*STATE, "step"), "2", 'step "2" is not a whole number'),
    ((*STATE, "step"), True, "step true is not a whole number"),
    ((*STATE, "step"), 10**400, "step \"of 1329 bits\" is not a whole number"),
    ((*STATE, "step"), 2, "step 2 is not where epoch"),
    ((*STATE, "position"), [1], "position is [1]"),
    ((*STATE, "position"), {"epoch": 0}, "position is"),
    ((*STATE, "position", "epoch"), 1 << 30, "is not where epoch"),
    ((*STATE, "position", "index"), 1.5, "index 1.5 is not a whole number"),
    ((*STATE, "random"), None, "random is null"),
    ((*STATE, "random", "seed"), "0", "go on with --seed"),
    ((*STATE, "random", "seed"), 7, "go on with --seed 7"),
    ((*STATE, "random", "epoch"), 5, "is not where epoch"),
    ((*STATE, "data"), {}, "digest is missing"),
    ((*STATE, "data", "digest"), "x", "the data, their length limit or how they are rendered"),
    ((*STATE, "data", "pack"), True, "go on with --pack"),
    (STATE, None, "does not say where a run stands"),
    (("optimizer",), "lamb", "is of \"lamb\" and does not fit this adamw"),
    (("version",), 2, "version 2 is not 1"),
])
def test_damaged_state_names_file_and_key(
    place: Place, stopped: Path, tmp_path: Path, keys: tuple[str, ...], value: Any, says: str
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    path = run / "step-3/training_state.json"
    state = json.loads(path.read_text())
    held = state
    for key in keys[:-1]:
        held = held[key]
    held[keys[-1]] = value
    path.write_text(json.dumps(state))
    message = failure("train", "-o", run, "--resume")
    assert "training_state.json" in message and says in message


@pytest.mark.parametrize(("name", "change", "says"), [
    (f"m.{DOWN}", lambda t: np.full_like(t, np.nan), "not finite numbers"),
    (f"v.{DOWN}", lambda t: np.full_like(t, np.inf), "not finite numbers"),
    (f"m.{DOWN}", lambda t: t.astype(np.float16), "is F16"),
    (f"m.{DOWN}", lambda t: t[:3], "instead of [32, 32]"),
    (f"m.{DOWN}", lambda t: None, "is missing"),
    (f"steps.{DOWN}", lambda t: t * 0 - 1, "is -1, not a whole number"),
    ("extra", lambda t: np.zeros(1, np.float32), "extra is unexpected"),
])
def test_damaged_optimizer_state_names_the_tensor(
    stopped: Path, tmp_path: Path, name: str, change: Any, says: str
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    path = run / "step-3/training_state.safetensors"
    state = load_file(path)
    made = change(state.get(name))
    save_file({key: t for key, t in {**state, name: made}.items() if t is not None}, path)
    message = failure("train", "-o", run, "--resume", "--steps", 4)
    assert name in message and says in message
    path.write_bytes(path.read_bytes()[:200])
    assert "training_state.safetensors" in failure("train", "-o", run, "--resume", "--steps", 4)


def test_a_log_line_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.add({"step": 1, "loss": 1.0})
    before = (tmp_path / "log.csv").read_bytes()
    plain = log._file

    class Full:
        """Room for three bytes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def write(self, data: bytes) -> int:
            return plain.write(data[:3])

    log._file = Full()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="disk is full"):
        log.add({"step": 2, "loss": 2.0})
    assert (tmp_path / "log.csv").read_bytes() == before
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n\u00b2,1\n" + "9" * 5000 + ",1\n2," + "x" * 200_000 + "\n")
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1"]


def test_a_run_without_a_terminal_leaves_a_log(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma4_core.console.LOG_SECONDS", 0.0)
    ran = gemma4(*place.args(tmp_path / "run", "--steps", 2))
    lines = [line for line in ran.err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2"] and "tokens/s" in lines[0]
    assert gemma4(*place.args(tmp_path / "quiet", "--steps", 2, "--quiet")).err == ""


def test_the_environment_loses_against_files_and_the_run_that_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    place.train(run, "--steps", 1, "--seed", 3)
    monkeypatch.setenv("GEMMA4_SEED", "5")
    monkeypatch.setenv("GEMMA4_OUTPUT_DIR", str(run))
    ran = gemma4("train", "--resume", "--steps", 2, "--json")
    assert ran.code == 0 and json.loads(ran.out)["resumed_from"] is not None, ran.err  # another seed would be refused
    config = tmp_path / "run.toml"
    config.write_text("seed = 4\n")
    for more, seed in ((["--config", config], 4), ([], 5), (["--config", config, "--seed", 6], 6)):
        folder = tmp_path / str(seed)
        place.train(folder, "--steps", 1, *more)
        assert json.loads((folder / "settings.json").read_text())["seed"] == seed


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["a" * 100_000, "a:" + " " * 100_000, "a" + " " * 100_000, "a: [" + " " * 100_000])
@pytest.mark.parametrize("suffix", [".yaml", ".toml", ".json"])
def test_long_words_and_spaces_in_a_config_file_do_not_hang(
    place: Place, tmp_path: Path, suffix: str, text: str
) -> None:
    config = tmp_path / f"run{suffix}"
    config.write_text(text)
    assert config.name in failure(*place.args(tmp_path / "run", "--config", config))


def test_memory_limits(place: Place, tmp_path: Path) -> None:
    asked = ["-m", place.model, "--data", place.data, "--max-length", 32, "--device", "cpu", "--steps", 1]
    said = failure("train", *asked, "-o", tmp_path / "small", "--max-memory", "0.00001")
    assert "--max-memory 1e-05: the weights alone take" in said and not (tmp_path / "small").exists()
    said = failure("train", *asked, "-o", tmp_path / "tight", "--max-memory", "0.0005")
    assert "needs" in said and "--max-memory" in said
    assert gemma4("train", *asked, "-o", tmp_path / "enough", "--max-memory", "8").code == 0
