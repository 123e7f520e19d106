"""Whole training steps over a device's kernels, which stand-ins play, against steps without any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stand_ins import EVERY, calls, matmul
from training_tools import quick, short

from gemma4_core import GemmaTrainingBatch, build_optimizer, train_step

pytestmark = pytest.mark.usefixtures("cpu")


def stepped(name: str, kernels: bool, length: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of two steps, and the tensors after them."""
    model = short(name)
    if kernels:
        model.operations = replace(model.operations, matmul=matmul, fused=EVERY)
    ids = np.random.default_rng(0).integers(3, 90, (2, length))
    optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=0.0)
    losses = [float(train_step(model, optimizer, GemmaTrainingBatch(ids)).numpy()) for _ in range(2)]
    return losses, {name: tensor.float().numpy() for name, tensor in model.named_tensors().items()}


@pytest.mark.slow
def test_steps_are_those_without_kernels() -> None:
    with quick():
        truth_losses, truths = stepped("dense", False, 24)
        calls.clear()
        losses, found = stepped("dense", True, 24)
    assert calls and np.abs(np.subtract(losses, truth_losses)).max() < 1e-5
    for key, truth in truths.items():
        assert np.abs(found[key] - truth).max() <= 1e-4 * max(np.abs(truth).max(), 1e-6), key
