"""Losses of one's own: gradients through ``forward_ids``, and lengths that share what is compiled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_data import load
from short_models import few_layers_config, short_folder
from tinygrad import Tensor, nn
from tinygrad.codegen import to_program_cache
from tinygrad.helpers import Context
from training_tools import reference_batch, short, tiny

from gemma4_core import GemmaTrainingBatch, build_optimizer, compute_loss, load_pretrained, train_step
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.model import GemmaModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_loops")]
IDS = [2, 5, 9, 3, 7, 11]


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """What ``compute_loss`` is, written out."""
    targets = Tensor(np.asarray(labels, np.int32))
    return logits[:, :-1].sparse_categorical_crossentropy(targets[:, 1:], ignore_index=-100)


def gradients_agree(model: GemmaModel, batch: GemmaTrainingBatch) -> set[str]:
    """Names of the tensors that gradients reached; they are those of the training path."""
    named = {name: t for name, t in model.named_tensors().items() if t.is_floating_point()}
    expected = compute_loss(model, batch).gradient(*named.values())
    logits, _ = model.forward_ids(batch.input_ids, **batch.media)
    labels = batch.labels if batch.labels is not None else batch.input_ids
    found = cross_entropy(logits, labels).gradient(*named.values())
    reached = [i for i, g in enumerate(expected) if g.uop.device is not None]
    assert [i for i, g in enumerate(found) if g.uop.device is not None] == reached
    Tensor.realize(*(expected[i] for i in reached), *(found[i] for i in reached))
    names = list(named)
    for i in reached:
        right, ours = expected[i].numpy(), found[i].numpy()
        assert np.abs(ours - right).max() <= 1e-4 * np.abs(right).max() + 2e-6, names[i]
    return {names[i] for i in reached}


@pytest.mark.parametrize("name", ["e2b", "dense", "moe"])
def test_custom_loss_has_the_gradients_of_training(name: str) -> None:
    model, ids = short(name), load(name).ids[:, :9]
    reached = gradients_agree(model, GemmaTrainingBatch(ids, ids))
    assert reached == {name for name, t in model.named_tensors().items() if t.is_floating_point()}


def test_custom_loss_reaches_the_towers() -> None:
    reached = gradients_agree(short("e2b-mm"), reference_batch("e2b-mm"))
    assert any("vision_tower" in name for name in reached) and any("audio_tower" in name for name in reached)


def test_custom_loss_equals_finite_differences() -> None:
    model = short("dense")
    for name in ("layers.1.mlp.down_proj.weight", "layers.0.post_attention_layernorm.weight"):
        weight = model.named_tensors()[model.config.text_prefix + name]
        loss = lambda: -model.forward_ids(IDS)[0].log_softmax(-1)[0, -1, 17]  # noqa: E731
        slope = loss().gradient(weight)[0].numpy()
        start, step = weight.numpy().copy(), 1e-2 * np.sign(slope)
        ends = []
        for sign in (1, -1):
            weight.assign(Tensor((start + sign * step * (np.abs(slope) > np.abs(slope).max() / 2)).astype(np.float32)))
            ends.append(loss().item())
        weight.assign(Tensor(start)).realize()
        expected = np.abs(slope[np.abs(slope) > np.abs(slope).max() / 2]).sum() * 2e-2
        assert abs(ends[0] - ends[1] - expected) < 0.05 * expected + 2e-3


def test_custom_loss_backward_and_a_step_change_the_next_logits() -> None:
    model = short("e2b")
    prefix = model.config.text_prefix
    names = ("layers.0.mlp.down_proj.weight", "layers.1.input_layernorm.weight", "norm.weight")
    weights = [model.named_tensors()[prefix + name] for name in names]
    optimizer, losses = nn.optim.SGD(weights, lr=0.5), []
    for _ in range(3):
        with Context(TRAINING=1):
            optimizer.zero_grad()
            logits, _ = model.forward_ids(IDS)
            loss = -logits.log_softmax(-1)[0, -1, 17]
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    # generation and cached runs see the new weights as well
    cached, _ = model.forward_ids(IDS, cache=model.make_cache())
    np.testing.assert_allclose(cached.numpy(), model.forward_ids(IDS)[0].numpy(), atol=1e-4)
    assert next(model.generate(IDS, 1, stop_ids=())) == int(cached.numpy()[0, -1].argmax())


@pytest.mark.parametrize("change", ["written", "replaced", "pending", "trained"])
def test_logits_follow_weights_however_they_change(change: str) -> None:
    model = short("dense")
    weight = model.text.norm
    before = model.forward_ids(IDS)[0].numpy()
    if change == "trained":
        train_step(model, build_optimizer(model, "sgd", lr=0.1), GemmaTrainingBatch(IDS))
    elif change == "replaced":
        weight.replace((weight * 2).contiguous().realize())
    else:
        weight.assign(weight * 2)
        if change == "written":
            weight.realize()
    after = model.forward_ids(IDS)[0].numpy()
    assert np.abs(after - before).max() > 1e-3
    cold, _ = model.forward_ids(IDS, cache=model.make_cache())
    np.testing.assert_allclose(after, cold.numpy(), atol=1e-4)


def test_int8_gradients_reach_what_trains_and_are_refused_elsewhere(tmp_path: Any) -> None:
    from gemma4_core.quantize import quantize

    folder = quantize(short_folder("dense"), tmp_path / "int8")
    model = load_pretrained(folder, device="cpu", dtype="float32")
    named, prefix = model.named_tensors(), model.config.text_prefix
    loss = -model.forward_ids(IDS)[0].log_softmax(-1)[0, -1, 17]
    assert np.abs(loss.gradient(named[prefix + "norm.weight"])[0].numpy()).max() > 0
    with pytest.raises(RuntimeError, match="only float"):
        loss.gradient(named[prefix + "layers.0.mlp.down_proj.weight"])
    build_optimizer(model, "sgd", lr=0.1, trainable=["*.mlp.*"])  # these matrices become ordinary ones
    loss = -model.forward_ids(IDS)[0].log_softmax(-1)[0, -1, 17]
    weight = model.named_tensors()[prefix + "layers.0.mlp.down_proj.weight"]
    assert np.abs(loss.gradient(weight)[0].numpy()).max() > 0


def test_distillation_as_the_guide_shows_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    [snippet] = [part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "teacher" in part]
    for seed, name in enumerate(("teacher", "student")):
        write_random_checkpoint(tmp_path / name, few_layers_config(), seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA4_DEVICE", "cpu")
    exec(compile(snippet, "docs/training.md", "exec"), {})
    first, second = map(float, capsys.readouterr().out.split())
    assert first > 0 and second > 0


# ---------------------------------------------------------------------------------------------------- lengths


def lowered(run: Callable[[], Any]) -> int:
    """Kernels that tinygrad lowers during a call."""
    before = len(to_program_cache)
    run()
    return len(to_program_cache) - before


@pytest.mark.parametrize("kernels", ["", "portable"])
def test_a_further_length_lowers_no_kernel_of_the_model(
    kernels: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA4_KERNELS", kernels)
    monkeypatch.setenv("GEMMA4_KEEP_GRAPHS", "0")
    model = tiny(folder=write_random_checkpoint(tmp_path / "tiny", few_layers_config()))
    run = lambda *shape: model.forward_ids(np.full(shape, 7))[0].realize()  # noqa: E731
    run(1, 6)
    assert lowered(lambda: run(1, 7)) <= 1  # the copy of the result, for its shape
    assert lowered(lambda: run(1, 5)) <= 1 and lowered(lambda: run(2, 4)) <= 1
    loss = lambda n: model.forward_ids([7] * n)[0].log_softmax(-1)[0, -1, 5]  # noqa: E731
    weight = model.text.norm
    loss(6).gradient(weight)[0].realize()
    # the loss itself has kernels for its shape, the model's backward pass has none
    assert lowered(lambda: loss(9).gradient(weight)[0].realize()) < 15


def test_a_batch_equals_its_rows_and_a_cached_run() -> None:
    model, ids = short("moe"), load("moe").ids[:, :13]
    together = model.forward_ids(ids)[0].numpy()
    for row, one in zip(ids, together, strict=True):
        np.testing.assert_allclose(model.forward_ids(row)[0].numpy()[0], one, atol=1e-5)
    cached, _ = model.forward_ids(ids, cache=model.make_cache())
    np.testing.assert_allclose(cached.numpy(), together, atol=1e-4)
