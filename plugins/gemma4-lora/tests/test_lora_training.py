"""Training an adapter: gradients, what changes and what does not, int8 bases, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma4_lora import Adapters, fresh_adapter
from gemma4_lora.matrices import LoraMatrix, LoraStack, LowRank
from gemma4_lora.names import adaptable
from lora_tools import FAMILIES, base_folder, logits, tiny
from reference_data import load, load_multimodal
from short_models import short_folder
from tinygrad import Tensor

from gemma4_core import (
    CheckpointError,
    DenseStack,
    Gemma4Error,
    GemmaModel,
    GemmaTrainingBatch,
    InputError,
    build_optimizer,
    compute_loss,
    load_training_checkpoint,
    save_training_checkpoint,
    train_step,
)
from gemma4_core.config import load_config
from gemma4_core.quantize import quantize
from gemma4_core.training.evaluate import Evaluator

TARGETS = ("*.layers.1.self_attn.q_proj.weight", "*.layers.1.mlp.down_proj.weight")


Folders = dict[tuple[str, bool], Path]
"""Short models by family, and whether they are int8."""


@pytest.fixture(name="folders", scope="module")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("short")
    plain = {name: short_folder(name) for name in FAMILIES}
    packed = {(name, True): quantize(plain[name], root / f"{name}-int8") for name in ("dense", "moe")}
    return packed | {(name, False): folder for name, folder in plain.items()}


def for_training(folder: Path, **options: Any) -> GemmaModel:
    return tiny(folder=folder, options={"lora": True, "lora_rank": 2, "lora_targets": TARGETS} | options)


def batch(name: str = "dense", first: int = 0) -> GemmaTrainingBatch:
    return GemmaTrainingBatch(load(name).ids[:1, first : first + 12])


def snapshot(model: GemmaModel) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy()) for name, tensor in model.named_tensors().items()}


def test_a_new_adapter_changes_nothing_and_is_the_same_for_the_same_seed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")  # a model with adapters runs portably; kernels round elsewhere
    model = for_training(folders["dense", False])
    assert np.array_equal(logits(model), logits(tiny(folder=folders["dense", False])))
    part = model.trained_part
    assert part is not None and len(part.tensors) == 4
    shapes, prefix = adaptable(model.config), model.config.text_prefix
    one, two, other = (fresh_adapter(shapes, prefix, rank=2, seed=seed) for seed in (0, 0, 1))
    for name, pair in one.pairs.items():
        assert np.array_equal(pair.a, two.pairs[name].a) and not np.array_equal(pair.a, other.pairs[name].a)
        assert not pair.b.any() and np.abs(pair.a).max() <= shapes[name][-1] ** -0.5 and pair.scale == 2.0
        if f"{name}.lora_A" in part.tensors:
            assert np.array_equal(part.tensors[f"{name}.lora_A"].numpy(), pair.a)
    drawn = fresh_adapter(shapes, prefix, rank=8, init="gaussian", use_rslora=True, alpha=4, targets=["q_proj"]).pairs
    assert {name.split(".")[-2] for name in drawn} == {"q_proj"}
    assert np.concatenate([p.a.ravel() for p in drawn.values()]).std() == pytest.approx(1 / 8, rel=0.1)
    assert next(iter(drawn.values())).scale == pytest.approx(4 / 8**0.5)


def test_targets_are_globs_or_module_names() -> None:
    shapes = adaptable(load_config(base_folder("e2b-mm")))
    pick = lambda *targets: list(  # noqa: E731
        fresh_adapter(shapes, "model.language_model.", rank=1, targets=targets).pairs
    )
    assert all(".layers." in name and "language_model" in name for name in pick())
    assert {name.split(".")[-2] for name in pick()} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }
    assert all(name.endswith(".self_attn.q_proj.weight") for name in pick("q_proj"))
    assert pick("*_tower*.q_proj.*") == pick("self_attn.q_proj.linear")
    assert pick("*.embed_audio.*") == ["model.embed_audio.embedding_projection.weight"]
    moe = adaptable(load_config(base_folder("moe")))
    assert all(len(moe[name]) == 3 for name in fresh_adapter(moe, "", rank=1, targets=["experts.down_proj"]).pairs)
    with pytest.raises(InputError, match="is a stack of experts, whose adapters have no dropout"):
        fresh_adapter(moe, "", rank=1, targets=["q_proj", "experts.down_proj"], dropout=0.1)


EXPERTS = ("*.layers.1.experts.*", "*.layers.0.self_attn.o_proj.weight", "*.layers.1.router.proj.weight")
IN_TOWER = ("*vision_tower*.mlp.up_proj*", "*vision_tower*.self_attn.q_proj*", "*embed_vision*")


def spread_out(changes: Iterable[LowRank]) -> None:
    """Give every B random numbers: while it is zero, A has no gradient."""
    random = np.random.default_rng(1)
    for change in changes:
        change.b.assign(Tensor(random.normal(0, 0.1, change.b.shape).astype(np.float32))).realize()


def check_factors(change: LowRank, a_gradient: np.ndarray, b_gradient: np.ndarray, whole: np.ndarray) -> None:
    """Compare the gradients of A and B with those that the gradient of the whole matrix makes of them."""
    a, b = change.a.numpy(), change.b.numpy()
    exact = (np.swapaxes(b, -1, -2) @ whole * change.scale, whole @ np.swapaxes(a, -1, -2) * change.scale)
    for found, wanted in zip((a_gradient, b_gradient), exact, strict=True):
        assert np.abs(wanted).max() > 0 and np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_gradients_through_int8_are_those_of_the_dense_equivalent(folders: Folders) -> None:
    model = for_training(folders["dense", True])
    check_against_dense(model, lambda: compute_loss(model, batch()))


def test_gradients_in_a_tower_are_those_of_the_dense_equivalent(folders: Folders) -> None:
    model = for_training(folders["e2b-mm", False], lora_targets=IN_TOWER)
    case = load_multimodal("e2b-mm").cases["image"]
    media = {"pixel_values": case.pixel_values, "image_position_ids": case.image_position_ids}
    check_against_dense(model, lambda: model.towers["vision"].encode(media)[0].square().mean())


def check_against_dense(model: GemmaModel, loss_of: Callable[[], Tensor]) -> None:
    """Compare the factors' gradients with those of merged matrices."""
    adapters, part = Adapters.of(model), model.trained_part
    changes = adapters.loaded["lora"].changes
    assert part is not None and len(changes) >= 2
    spread_out(changes.values())
    loss = loss_of()
    found = dict(zip(part.tensors, loss.gradient(*part.tensors.values()), strict=True))
    found = {key: gradient.numpy() for key, gradient in found.items()}
    value = loss.item()
    adapters.activate("lora", mode="merged")
    dense = {key: adapters.places[key].matrix.parts()[""] for key in changes}
    loss = loss_of()
    gradients = loss.gradient(*dense.values())  # before the loss is computed, which forgets how
    assert loss.item() == pytest.approx(value, rel=1e-4)
    for key, gradient in zip(dense, gradients, strict=True):
        check_factors(changes[key], found[f"{key}.lora_A"], found[f"{key}.lora_B"], gradient.numpy())


@pytest.mark.parametrize("packed", [False, True])
def test_stacks_of_experts_compute_what_the_dense_equivalent_does(packed: bool, folders: Folders) -> None:
    model = for_training(folders["moe", packed], lora_targets=EXPERTS)
    held = [place.matrix for place in model.places.values()]
    assert sum(isinstance(matrix, LoraMatrix) for matrix in held) == 2
    stacks = [matrix for matrix in held if isinstance(matrix, LoraStack)]
    assert len(stacks) == 2 and all(type(stack.base).__name__ == ("Int8Stack" if packed else "DenseStack")
                                    for stack in stacks)
    stack = stacks[0]
    [change] = stack.changes
    spread_out([change])
    dense = DenseStack(stack.dense().contiguous().realize())
    experts, _, inner = stack.shape
    random = np.random.default_rng(2)
    x = Tensor(random.normal(size=(3, inner)).astype(np.float32)).realize()
    chosen = Tensor([[0, 2], [5, 1], [2, 7]])
    each = Tensor(random.normal(size=(experts, 3, inner)).astype(np.float32)).realize()
    for call in (lambda s: s.selected(x.unsqueeze(1), chosen), lambda s: s.every(x), lambda s: s.every(each)):
        mine, theirs = call(stack), call(dense)
        assert mine.shape == theirs.shape and np.abs((mine - theirs).numpy()).max() < 1e-4
        weights = Tensor(random.normal(size=mine.shape).astype(np.float32)).realize()
        a, b = ((mine * weights).sum().gradient(change.a, change.b))
        [whole] = (theirs * weights).sum().gradient(dense.tensor)
        check_factors(change, a.numpy(), b.numpy(), whole.numpy())


@pytest.mark.parametrize(
    ("name", "packed"), [("dense", False), pytest.param("dense", True, marks=pytest.mark.slow), ("moe", True)]
)
def test_only_the_adapter_trains(name: str, packed: bool, folders: Folders) -> None:
    model = for_training(folders[name, packed], lora_targets=EXPERTS if name == "moe" else TARGETS)
    before = snapshot(model)
    optimizer = build_optimizer(model, "adamw", lr=0.05)
    assert sorted(optimizer.named_params) == sorted(name for name in before if ".lora_" in name)
    assert f"{len(optimizer.named_params)} tensors" in optimizer.summary
    losses = [train_step(model, optimizer, batch(name)).item() for _ in range(4)]
    assert losses[-1] < losses[0]
    after = snapshot(model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == set(optimizer.named_params)
    bases = {type(place.matrix.base).__name__ for place in model.places.values() if hasattr(place.matrix, "base")}
    assert bases <= {"Int8Matrix", "Int8Stack", "DenseMatrix"} and ("Int8Matrix" in bases) == packed


def test_layers_computed_again_give_the_same_step(folders: Folders) -> None:
    results = []
    for checkpointing in (False, True):
        model = for_training(folders["dense", False], lora_dropout=0.3)
        optimizer = build_optimizer(model, "sgd", lr=0.1)
        losses = [train_step(model, optimizer, batch(), checkpointing=checkpointing).item() for _ in range(2)]
        results.append((losses, {name: t.numpy() for name, t in optimizer.named_params.items()}))
    assert results[0][0] == results[1][0]
    assert all(np.array_equal(results[0][1][name], value) for name, value in results[1][1].items())
    # what is not trained on drops nothing, nor do the answers
    held = Evaluator(model).loss([batch()])
    assert held == pytest.approx(compute_loss(model, batch()).item(), rel=1e-5)
    assert held != pytest.approx(train_step(model, optimizer, batch()).item(), rel=1e-5)


def test_three_and_three_steps_are_six(folders: Folders, tmp_path: Path) -> None:
    base = folders["dense", False]

    def run(steps: int, model: GemmaModel, optimizer: Any, first: int = 0) -> list[float]:
        return [train_step(model, optimizer, batch(first=step)).item() for step in range(first, first + steps)]

    whole = for_training(base, lora_dropout=0.2)
    optimizer = build_optimizer(whole, lr=0.02)
    losses = run(3, whole, optimizer)
    folder = save_training_checkpoint(whole, tmp_path / "run", optimizer, {"step": 3})
    names = {path.name for path in folder.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors"} and "model.safetensors" not in names
    losses += run(3, whole, optimizer, 3)

    again = for_training(base, lora_dropout=0.2)
    other = build_optimizer(again, lr=0.02)
    assert load_training_checkpoint(folder, again, other) == {"step": 3}
    assert run(3, again, other, 3) == losses[3:]
    for name, tensor in optimizer.named_params.items():
        assert np.array_equal(tensor.numpy(), other.named_params[name].numpy())
    # the folder is an adapter like any other, and may be trained on
    applied = tiny(folder=base, options={"adapter": str(folder)})
    assert not np.allclose(logits(applied), logits(tiny(folder=base)))
    onward = tiny(folder=base, options={"lora": True, "adapter": str(folder)})
    held = {c.dropout.p for c in Adapters.of(onward).loaded["lora"].changes.values() if c.dropout is not None}
    assert held == {0.2} and json.loads((folder / "adapter_config.json").read_text())["lora_dropout"] == 0.2
    assert onward.trained_part is not None and np.allclose(logits(onward), logits(applied), atol=1e-3)
    with pytest.raises(CheckpointError, match="differs in"):
        load_training_checkpoint(folder, for_training(base, lora_rank=3))
    with pytest.raises(InputError, match="int8"):
        save_training_checkpoint(again, tmp_path / "q", quantize="int8")
    with pytest.raises(Gemma4Error, match="do not fit"):
        tiny(folder=folders["moe", False], options={"lora": True, "adapter": str(folder)})
