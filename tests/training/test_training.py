"""Batches, selection of what trains, steps, and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from reference_data import load
from tinygrad import GlobalCounters, Tensor
from tinygrad.nn.optim import AdamW
from training_tools import MLP, quick, short, snapshot

from gemma4_core import Gemma4Error, GemmaTrainingBatch, build_optimizer, compute_loss, train_step
from gemma4_core.training import cosine, linear
from gemma4_core.training.batch import checked

IDS = [5, 9, 20, 31]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


def test_labels_are_the_ids_shifted_without_padding_and_media() -> None:
    model = short("e2b")
    image, pad = model.config.image_token_id, model.config.pad_token_id
    assert image is not None and image < model.config.text_config.vocab_size
    _, targets = checked(model, GemmaTrainingBatch([5, image, 7, pad, 9]))
    assert targets.tolist() == [[-100, 7, -100, 9, -100]]


def test_given_labels_are_shifted_and_kept() -> None:
    _, targets = checked(short(), GemmaTrainingBatch(np.array([IDS]), Tensor([[-100, -100, 9, 3]])))
    assert targets.tolist() == [[-100, 9, 3, -100]]


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (GemmaTrainingBatch([5]), "no target"),
        (GemmaTrainingBatch(IDS, [5, -100, -100, -100]), "no target"),
        (GemmaTrainingBatch([5, 99999]), "99999"),
        (GemmaTrainingBatch(IDS, [1, 2, 3]), "[1, 3]"),
        (GemmaTrainingBatch(IDS, [1, -7, 3, 4]), "-7"),
        (GemmaTrainingBatch(IDS, [0.5, 1, 2, 3]), "whole numbers"),
        (GemmaTrainingBatch([[1, 2], [3]]), "differ in length"),
        (GemmaTrainingBatch(IDS, pixel_values=np.zeros((1, 4, 768))), "pixel_values"),
        (IDS, "GemmaTrainingBatch"),
    ],
)
def test_bad_batches(batch: Any, says: str) -> None:
    with pytest.raises(Gemma4Error) as caught:
        compute_loss(short(), batch)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_only_chosen_tensors_change_and_generation_sees_it() -> None:
    model = short()
    before, tokens = snapshot(model), list(model.generate(IDS, max_new_tokens=4, stop_ids=()))
    optimizer = build_optimizer(model, lr=0.5, trainable=[MLP, "*.layers.0.layer_scalar"], frozen="*down_proj*")
    assert {name.rsplit(".", 2)[1] for name in optimizer.named_params} == {"gate_proj", "up_proj"}
    assert "2 tensors" in optimizer.summary
    losses = [train_step(model, optimizer, GemmaTrainingBatch(IDS)).item() for _ in range(3)]
    assert len(set(losses)) == 3
    changed = {name for name, value in snapshot(model).items() if not np.array_equal(value, before[name])}
    assert changed == set(optimizer.named_params)
    assert list(model.generate(IDS, max_new_tokens=4, stop_ids=())) != tokens


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trainable": ["*.nonsense"]}, "*.nonsense"),
        ({"frozen": ["model.*", "nothing*"]}, "nothing*"),
        ({"frozen": ["*"]}, "nothing would train"),
        ({"trainable": "*layer_scalar"}, "never trained"),
        ({"trainable": [3]}, "3"),
        ({"trainable": []}, "nothing would train"),
        ({"lr": float("nan")}, "NaN"),
        ({"lr": -1.0}, "-1.0"),
        ({"weight_decay": "x"}, '"x"'),
        ({"optimizer": "adamx"}, "adamx"),
        ({"sideways": 1}, "sideways"),
    ],
)
def test_bad_choices(options: dict[str, Any], says: str) -> None:
    with pytest.raises(Gemma4Error) as caught:
        build_optimizer(short(), **options)
    assert says in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.slow
def test_accumulated_batches_equal_one_and_clipping_bounds_the_step() -> None:
    rows, results = load("dense").ids[:, :12], []
    for batch in (GemmaTrainingBatch(rows), [GemmaTrainingBatch(row) for row in rows]):
        model = short()
        optimizer = build_optimizer(model, "sgd", lr=0.1, trainable=MLP)
        loss = train_step(model, optimizer, batch, max_norm=0.01)
        results.append((loss.item(), snapshot(model)))
    (one, joined), (two, separate) = results
    assert one == pytest.approx(two, rel=1e-5)
    start, moved = snapshot(short()), 0.0
    for name, value in joined.items():
        np.testing.assert_allclose(value, separate[name], atol=1e-6)
        moved += float(((value - start[name]) ** 2).sum())
    assert moved**0.5 == pytest.approx(0.001, rel=1e-2)  # lr times max_norm


def test_the_rate_of_captured_steps_can_change() -> None:
    model = short()
    optimizer = build_optimizer(model, "sgd", lr=0.1, trainable=MLP)
    for _ in range(3):
        train_step(model, optimizer, GemmaTrainingBatch(IDS))
    before = snapshot(model)
    train_step(model, optimizer, GemmaTrainingBatch(IDS), lr=0.0)
    assert optimizer.lr == 0.0
    assert all(np.array_equal(value, before[name]) for name, value in snapshot(model).items())
    with pytest.raises(Gemma4Error, match="Infinity"):
        optimizer.set_lr(float("inf"))


def test_a_tinygrad_optimizer_over_the_models_tensors() -> None:
    model = short()
    name = next(n for n in model.named_tensors() if n.endswith("layers.1.mlp.up_proj.weight"))
    optimizer = AdamW([model.named_tensors()[name]], lr=0.01)
    losses = [train_step(model, optimizer, GemmaTrainingBatch(IDS)).item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    with pytest.raises(Gemma4Error, match="build_optimizer"):
        train_step(model, AdamW([Tensor.ones(3)]), GemmaTrainingBatch(IDS))


def test_bf16_weights_add_up_small_updates_in_fp32() -> None:
    model = short(dtype="bfloat16")
    optimizer = build_optimizer(model, "sgd", lr=1e-3, trainable=MLP)
    masters = [name for name in optimizer.state_dict() if name.startswith("master.")]
    assert len(masters) == 3
    first = {name: tensor.numpy().copy() for name, tensor in optimizer.state_dict().items() if name in masters}
    train_step(model, optimizer, GemmaTrainingBatch(IDS))
    state = optimizer.state_dict()
    for name in masters:
        assert not np.array_equal(state[name].numpy(), first[name])
        held = model.named_tensors()[name.removeprefix("master.")]
        assert np.array_equal(held.float().numpy(), state[name].bfloat16().float().numpy())


def test_schedules() -> None:
    assert [linear(1.0, step, 10, warmup=2) for step in (0, 1, 2, 6, 10, 99)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    rates = [cosine(2.0, step, 12, warmup=2) for step in range(13)]
    assert rates[:3] == [1.0, 2.0, 2.0] and rates[7] == pytest.approx(1.1) and rates[12] == pytest.approx(0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    with pytest.raises(Gemma4Error, match="warm-up"):
        cosine(1.0, 0, 4, warmup=5)


@pytest.mark.slow
def test_products_are_computed_once() -> None:
    """Fused into a product, what makes its operands is computed for every row or column of the result."""
    model, ids = short(), np.random.default_rng(0).integers(3, 200, (4, 48))
    matrices = [tensor for tensor in model.named_tensors().values() if tensor.ndim >= 2]
    loss = compute_loss(model, GemmaTrainingBatch(ids))
    gradients = [gradient.contiguous() for gradient in loss.gradient(*matrices)]
    GlobalCounters.reset()
    Tensor.realize(loss, *gradients)
    # forward and backward need 6 for each weight and token; attention, norms and the table's gradient come on top
    least = 6 * sum(int(matrix.numel()) for matrix in matrices) * ids.size
    assert least * 0.5 < GlobalCounters.global_ops < least * 5
