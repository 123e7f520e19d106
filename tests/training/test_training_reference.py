"""Loss, gradients and steps against transformers, for all families, with and without recomputation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_data import TRAINING, load, load_multimodal, load_training
from tinygrad import Tensor
from training_tools import quick, reference_batch, tiny

from gemma4_core import build_optimizer, compute_loss, train_step
from gemma4_core.training import loss as loss_module

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3


def folder_of(name: str, target: Path) -> Path:
    return load(name).folder if TRAINING[name] is None else load_multimodal(name).folder(target)


@pytest.mark.parametrize(
    ("name", "checkpointing", "piece"),
    [("e2b-mm", False, None), ("e2b-mm", True, None), ("moe", False, 4000), ("dense-mm", True, None)],
)
def test_every_gradient(
    name: str, checkpointing: bool, piece: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = load_training(name)
    if piece is not None:
        monkeypatch.setattr(loss_module, "PIECE", piece)
    with quick():
        model = tiny(folder=folder_of(name, tmp_path))
        held = model.named_tensors()
        loss = compute_loss(model, reference_batch(name), checkpointing=checkpointing)
        # tinygrad 0.14 keeps no result that is a function's own output: a copy is kept
        grads = [g.contiguous() for g in loss.gradient(*(held[key] for key in reference.parameters))]
        Tensor.realize(loss, *grads)
    assert loss.shape == () and abs(loss.item() - reference.losses["sgd"][0]) < 1e-4
    for (key, expected), gradient in zip(reference.parameters.items(), grads, strict=True):
        found = gradient.numpy().astype(np.float64).reshape(-1)
        scale = max(expected.norm, 1e-9)
        assert abs(np.linalg.norm(found) - expected.norm) < TOLERANCE * scale, key
        worst = np.abs(found[expected.index] - expected.gradient).max()
        assert worst <= TOLERANCE * max(np.abs(expected.gradient).max(), 1e-9), key


@pytest.mark.parametrize(("name", "kind"), [("dense", "sgd"), ("moe", "adamw")])
def test_captured_steps(name: str, kind: str) -> None:
    reference, batch = load_training(name), reference_batch(name)
    with quick():
        model = tiny(name)
        optimizer = build_optimizer(model, kind, lr=1e-3, weight_decay=0.01 if kind == "adamw" else 0.0)
        losses = [train_step(model, optimizer, batch).item()]
        after = model.named_tensors()
        for key, expected in reference.parameters.items():
            wanted = getattr(expected, kind)
            worst = np.abs(after[key].numpy().reshape(-1)[expected.index] - wanted).max()
            assert worst <= TOLERANCE * np.abs(wanted).max(), key
        losses += [train_step(model, optimizer, batch).item() for _ in range(3)]
    np.testing.assert_allclose(losses, reference.losses[kind], rtol=1e-4)
    assert optimizer.shapes == 1
