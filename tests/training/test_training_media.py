"""Training steps with images and sound: captured ones are those that are not, and media count by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor
from training_tools import reference_batch, short, snapshot

from gemma4_core import GemmaTrainingBatch, InputError, build_optimizer, train_step
from gemma4_core.model import GemmaModel
from gemma4_core.training.programs.steps import Steps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_loops")]
TRAINED = ["*embed_vision.*", "*embed_audio.*", "*vision_tower*layers.0.mlp.up_proj*", "*layers.0.mlp.up_proj.weight"]


def trained(batches: list[GemmaTrainingBatch]) -> tuple[list[float], dict[str, np.ndarray], int]:
    """Losses of steps, the weights after them, and the number of graphs."""
    model = short("e2b-mm")
    optimizer = build_optimizer(model, "sgd", lr=0.05, trainable=TRAINED)
    losses = [train_step(model, optimizer, batch).item() for batch in batches]
    return losses, snapshot(model), optimizer.shapes


def test_captured_steps_with_media(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = reference_batch("e2b-mm")
    assert {"pixel_values", "input_features"} <= set(batch.media)
    # the third step runs the graph again, with other media than it was captured for
    darker = GemmaTrainingBatch(
        batch.input_ids, batch.labels, **{**batch.media, "pixel_values": np.asarray(batch.pixel_values) * 0.5}
    )
    losses, weights, graphs = trained([batch, batch, darker])
    assert graphs == 1 and losses[0] > losses[1]
    monkeypatch.setattr(Steps, "serve", lambda steps, batches: False)
    plain_losses, plain_weights, graphs = trained([batch, batch, darker])
    assert graphs == 0
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(value, plain_weights[name], atol=2e-5, err_msg=name)


def towers(model: GemmaModel, features: dict[str, Any]) -> dict[str, list[Tensor]]:
    return {
        spec.name: model.towers[spec.name].encode({key: features[key] for key in spec.keywords if key in features})
        for spec in model.tower_specs if spec.name in ("vision", "audio")
    }


def test_media_of_different_sizes_do_not_see_each_other() -> None:
    model = short("e2b-mm")
    one = {key: np.asarray(value) for key, value in reference_batch("e2b-mm").media.items()}
    both: dict[str, np.ndarray] = {}
    for key, value in one.items():
        other = value[:1].copy()
        if key == "image_position_ids":
            other[:, -4:] = -1  # a smaller image
        if key == "input_features_mask":
            other[:, other.shape[1] // 2 :] = False  # a shorter clip
        both[key] = np.concatenate([other, value[:1]])
    for name, found in towers(model, both).items():
        alone = towers(model, {key: value[1:] for key, value in both.items()})[name]
        assert len(found) == 2 and found[0].shape[0] <= found[1].shape[0]
        np.testing.assert_allclose(found[1].numpy(), alone[0].numpy(), atol=2e-4)


def test_media_and_placeholders_must_agree() -> None:
    model, batch = short("e2b-mm"), reference_batch("e2b-mm")
    optimizer = build_optimizer(model, "sgd", lr=0.1, trainable=TRAINED)
    lacking = {**batch.media, "pixel_values": np.asarray(batch.pixel_values)[:0],
               "image_position_ids": np.asarray(batch.image_position_ids)[:0]}
    with pytest.raises(InputError, match="vision"):
        train_step(model, optimizer, GemmaTrainingBatch(batch.input_ids, batch.labels, **lacking))
