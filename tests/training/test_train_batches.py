"""Batches of the trainer in the model: packed texts do not see each other, media reach the loss."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from train_tools import DOWN, LINES, write_checkpoint, write_lines
from training_tools import quick, snapshot

from gemma4_core import (
    Gemma4Error,
    GemmaTrainingBatch,
    build_optimizer,
    compute_loss,
    load_pretrained,
    load_training_checkpoint,
    train_step,
)
from gemma4_core.training.data import Batches, read_examples
from gemma4_core.training.trainer import Plan, Trainer


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.mark.slow
def test_packed_texts_do_not_see_each_other(tmp_path: Path) -> None:
    model = load_pretrained(write_checkpoint(tmp_path / "model"), device="cpu")
    examples = read_examples(write_lines(tmp_path / "d.jsonl", [*LINES[3:], *LINES[3:]]), model.processor)
    packed = Batches(examples, model.processor, batch_size=2, pack=True)
    alone = Batches(examples, model.processor, batch_size=2)
    [[rows]] = packed.epoch(0)
    assert max(len(row) for row in rows) > 1
    batch = packed.make(rows)
    apart = [alone.make(rows) for step in alone.epoch(0) for rows in step]
    each = [(compute_loss(model, one).item(), int((one.labels >= 0).sum())) for one in apart]
    mean = sum(loss * count for loss, count in each) / sum(count for _, count in each)
    assert compute_loss(model, batch).item() == pytest.approx(mean, rel=1e-5)
    blind = GemmaTrainingBatch(batch.input_ids, batch.labels)
    assert compute_loss(model, blind).item() != pytest.approx(mean, rel=1e-3)

    states = []
    for given in (batch, apart):  # one batch, and sums of several that are padded alike
        fresh = load_pretrained(tmp_path / "model", device="cpu")
        optimizer = build_optimizer(fresh, "sgd", lr=0.1, trainable=DOWN)
        for _ in range(3):
            train_step(fresh, optimizer, given, max_norm=0.5)
        assert optimizer.gradient_norm is not None and optimizer.gradient_norm.item() > 0
        assert optimizer.shapes == 1
        states.append(snapshot(fresh)[DOWN])
    np.testing.assert_allclose(*states, atol=1e-6)
    with pytest.raises(Gemma4Error, match="segments"):
        compute_loss(model, GemmaTrainingBatch([1, 2, 3], segments=[0, 0]))


def test_the_example_script_learns_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples/finetune_jsonl.py"))
    model, data = write_checkpoint(tmp_path / "model"), write_lines(tmp_path / "d.jsonl")
    asked = [str(model), str(data), str(tmp_path / "run"), "--lr", "0.01", "--batch-size", "2", "--trainable", DOWN]
    script["main"](asked)
    assert load_training_checkpoint(tmp_path / "run", load_pretrained(tmp_path / "run", device="cpu"))["step"] == 3
    assert "5 examples" in capsys.readouterr().out
    script["main"]([*asked, "--epochs", "2"])
    assert re.findall(r"step (\d) of 6", capsys.readouterr().out) == ["4", "5", "6"]


def test_images_are_learnt_from(tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 48, 3), 200, np.uint8)).save(tmp_path / "a.png")
    lines = [{"prompt": "What?", "completion": "Grey.", "image": "a.png"}, {"prompt": "Why?", "completion": "So."}]
    model = load_pretrained(write_checkpoint(tmp_path / "model", towers=True), device="cpu",
                            options={"image_tokens": 70})
    examples = read_examples(write_lines(tmp_path / "d.jsonl", lines), model.processor)
    names = [name for name in model.named_tensors() if "embed_vision" in name]
    assert len(names) == 1
    optimizer = build_optimizer(model, "sgd", lr=0.1, trainable=names)
    before = snapshot(model)
    trainer = Trainer(model, optimizer, Batches(examples, model.processor, batch_size=2), Plan(lr=0.1, steps=1))
    [report] = trainer
    assert report.targets == examples.targets and report.gradient_norm is not None and report.gradient_norm > 0
    changed = {name for name, value in snapshot(model).items() if not np.array_equal(value, before[name])}
    assert changed == set(names)
