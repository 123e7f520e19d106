"""What a run takes, told before it begins: memory, steps, seconds, and a refusal of what cannot fit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4
from tinygrad import dtypes
from tinygrad.helpers import GlobalCounters
from train_tools import DOWN, LINES, Place, write_checkpoint, write_lines
from training_tools import quick, short

from gemma4_core import GemmaTrainingBatch, InputError, build_optimizer, load_pretrained
from gemma4_core.training import estimate
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.data import Batches, read_examples
from gemma4_core.training.programs.steps import Steps
from gemma4_core.training.trainer import Plan, Trainer

LONG = {"text": "one two three " * 12}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("estimate"))


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


def test_a_dry_run_tells_memory_and_time_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    ran = gemma4(*place.args(tmp_path / "run", "--dry-run", "--json", "--steps", 90))
    assert (ran.code, ran.err) == (0, "") and not (tmp_path / "run").exists()
    found = json.loads(ran.out)
    memory, timed = found["memory_bytes"], found["timed_seconds_by_tokens"]
    size, every = 32 * 32, sum(int(t.nbytes()) for t in load_pretrained(place.model).named_tensors().values())
    assert memory["weights"] == every and memory["gradients"] == 4 * size
    assert 8 * size <= memory["optimizer_state"] <= 8 * size + 8  # both moments, learning rate and a count of steps
    assert memory["activations"] > 2 * 64 * 32 * 4 and memory["free"] > memory["total"]
    sizes = ("weights", "gradients", "optimizer_state", "activations")
    assert memory["total"] == sum(memory[name] for name in sizes)
    assert list(timed) == ["64"] and timed["64"] == pytest.approx(found["step_seconds"], abs=1e-6)
    most = found["first_step_seconds"] + 89 * found["step_seconds"]
    assert found["steps"] == 90 and found["seconds"] == pytest.approx(most, rel=1e-3)


def test_the_lines_of_a_dry_run(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = estimate.Estimate(9 * 10**9, 10**9, 2 * 10**9, None, 5 * 10**9, 12.5, 3.0, 2, {64: 0.25, 512: 1.5}, 0.4, 11)
    monkeypatch.setattr("gemma4_plugins.commands.train.report.estimated", lambda trainer: known)
    lines = gemma4(*place.args(tmp_path / "run", "--dry-run")).out.splitlines()
    told = {line[:20].strip(): line[20:] for line in lines}
    assert told["memory"].startswith("12.0 GB: weights 9.00 GB, gradients 1.00 GB, optimizer state 2.00 GB, ")
    assert "activations of the largest step unknown; 5.00 GB were free" in told["memory"]
    assert told["seconds per step"].startswith("0.4: steps timed just now took 0.25 s for 64 tokens and 1.5 s for 512")
    assert told["seconds"].startswith("19.5: all steps, with 12.5 until the first is done and 3 more for each other of")


def test_steps_of_other_sizes_lie_between_the_timed_ones() -> None:
    timed = {100: 1.0, 300: 2.0}
    assert [estimate.between(timed, size) for size in (100, 200, 300)] == [1.0, 1.5, 2.0]
    assert estimate.between({100: 1.0}, 100) == 1.0


@pytest.mark.parametrize(("name", "options"), [
    ("adamw", {}), ("adamw", {"compact": True}), ("sgd", {}), ("muon", {}),
])
def test_an_optimizers_state_is_known_before_it_is_built(name: str, options: dict[str, Any]) -> None:
    model = short(dtype="bfloat16")
    every = {n: t for n, t in model.named_tensors().items() if not n.endswith("layer_scalar")}
    forms = {n: (int(t.numel()), t.dtype, t.ndim) for n, t in every.items()}
    told = estimate.state_bytes(model, name, options, forms)
    built = build_optimizer(model, name, **options).state_dict()
    counts = [key for key, tensor in built.items() if tensor.numel() == 1]
    assert told == sum(int(t.nbytes()) for key, t in built.items() if key not in counts)


def test_what_the_programs_hold_is_planned(cpu: str) -> None:
    model = short()
    tensor = next(t for name, t in model.named_tensors().items() if name.endswith("down_proj.weight"))
    steps = Steps(model, {"one": tensor})
    batch = CheckedBatch.of(model, GemmaTrainingBatch(np.arange(5, 69).reshape(2, 32)))
    linked = steps.pass_of(batch, False, True)
    before = GlobalCounters.mem_used_per_device[cpu]
    steps.run([batch], True)
    assert GlobalCounters.mem_used_per_device[cpu] - before == pytest.approx(linked.bytes, rel=0.02)
    assert steps.gradient_bytes == int(tensor.nbytes())


def test_what_gradients_and_state_take_is_refused_with_its_numbers(place: Place, tmp_path: Path) -> None:
    model = load_pretrained(place.model, device="cpu")
    every = sum(math.prod(t.shape) for t in model.named_tensors().values())
    for more in (["--dry-run"], []):
        limit = ["--max-memory", f"{4.5 * every / 1e9:.9f}", "--trainable", "*"]
        said = failure(*place.args(tmp_path / "run", *limit, *more))
        assert "gradients (" in said and "optimizer state (" in said and "may be used; train an adapter" in said
        assert not list((tmp_path / "run").glob("step-*"))


def test_a_step_that_cannot_fit_is_refused_before_the_first(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_pretrained(write_checkpoint(tmp_path / "model"), device="cpu")
    examples = read_examples(write_lines(tmp_path / "d.jsonl", [*LINES[3:], LONG]), model.processor)
    batches = next(one for one in (Batches(examples, model.processor, seed=seed) for seed in range(9))
                   if one.make_length(one.epoch(0)[0][0]) == 32)
    trainer = Trainer(model, build_optimizer(model, "sgd", trainable=DOWN), batches, Plan())
    estimate.check_largest(trainer)
    assert trainer.optimizer.shapes == 1  # there is so much room that the largest needs no look
    steps = trainer.optimizer.steps(model)
    (first,) = steps.passes.values()
    monkeypatch.setattr(steps, "room", lambda: first.replay.size if first.replay is not None else 0)
    with pytest.raises(InputError, match=r"of this shape needs .*B of memory beside weights.* may be used"):
        estimate.check_largest(trainer)
    assert estimate.trained_dtype(None, dtypes.bfloat16) == dtypes.bfloat16
