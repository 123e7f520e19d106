"""An operation of one's own is called, whatever larger pieces the device brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor
from training_tools import short

from gemma4_core import DenseMatrix, GemmaTrainingBatch, build_optimizer, compute_loss, registry, train_step
from gemma4_core.model import GemmaModel
from gemma4_core.ops import LAYERS, PIECES, Operations, portable
from gemma4_core.ops.towers import tower_operations

NAMES = (*LAYERS, "logits", "sample")
IDS = [2, 5, 9, 3, 7, 11]


def table_of(device: str) -> Operations:
    if device == "cpu":
        cpu = registry.devices["cpu"].operations
        assert cpu is not None
        return cpu()
    if device == "uops":
        from gemma4_plugins.devices import uops

        return uops.operations()
    from gemma4_plugins.devices.cuda import kernels as cuda

    return cuda.operations()


def counted(table: Operations, name: str) -> tuple[Callable[..., Any], list[int]]:
    """The portable operation in a wrapper of one's own, and how often it was called."""
    calls = [0]
    inner = getattr(portable(), name)

    def mine(*arguments: Any) -> Any:
        calls[0] += 1
        return inner(*arguments)

    return mine, calls


@pytest.mark.parametrize("device", ["cpu", "cuda", "uops"])
@pytest.mark.parametrize("name", NAMES)
def test_overridden_operation_makes_larger_pieces_step_back(device: str, name: str) -> None:
    table = table_of(device)
    brought = [piece for piece in PIECES if getattr(table, piece) is not None]
    assert brought
    mine, _ = counted(table, name)
    changed = dataclasses.replace(table, **{name: mine})
    for piece in brought:
        assert (getattr(changed, piece) is None) == (name in PIECES[piece]), piece
    assert changed.replaced(name) and not table.replaced(name)
    # a name is no operation, and a further change of settings brings nothing back
    assert dataclasses.replace(table, name="other").step is table.step
    assert dataclasses.replace(changed, prefill_chunk=64).step is None or name not in PIECES["step"]


def test_pieces_stay_where_they_are_given_for_the_operations_at_hand() -> None:
    table = table_of("cpu")
    mine, _ = counted(table, "rms_norm")
    vouched = dataclasses.replace(table, rms_norm=mine, built_for={})
    assert vouched.step is table.step is not None and vouched.rms_norm is mine
    assert dataclasses.replace(vouched, rms_norm=portable().rms_norm).step is None
    step = lambda *arguments: None  # noqa: E731
    assert dataclasses.replace(table, rms_norm=mine, step=step).step is step


def with_operation(model: GemmaModel, name: str) -> list[int]:
    mine, calls = counted(model.operations, name)
    model.operations = dataclasses.replace(model.operations, **{name: mine})
    return calls


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("name", NAMES)
def test_overridden_operation_is_called(name: str) -> None:
    model = short("moe" if name == "experts" else "dense")
    expected = list(model.generate(IDS, 2, stop_ids=()))
    calls = with_operation(model, name)
    assert list(model.generate(IDS, 2, stop_ids=())) == expected
    assert calls[0] > 0
    calls[0] = 0
    compute_loss(model, GemmaTrainingBatch(IDS))  # traces the forward pass
    assert (calls[0] > 0) == (name != "sample")


@pytest.mark.usefixtures("plain_loops")
def test_overridden_norm_changes_the_answer() -> None:
    model = short("dense")
    before = model.forward_ids(IDS)[0].numpy()
    model.operations = dataclasses.replace(model.operations, rms_norm=lambda x, weight, eps: x * 0.5)
    assert np.abs(model.forward_ids(IDS)[0].numpy() - before).max() > 1e-3


def test_overridden_product_is_called_by_towers(cpu: str) -> None:
    table = table_of("cpu")
    mine, calls = counted(table, "linear")
    towers = tower_operations(dataclasses.replace(table, linear=mine), cpu)
    assert towers.name == "portable" and tower_operations(table, cpu).name == "cpu"
    rows = towers.linear(Tensor(np.eye(32, dtype=np.float32)), DenseMatrix(Tensor(np.ones((4, 32), np.float32))))
    assert rows.numpy().tolist() == [[1.0] * 4] * 32 and calls == [1]


@pytest.mark.usefixtures("plain_loops")
def test_overridden_operation_trains() -> None:
    model = short("dense")
    calls = with_operation(model, "rms_norm")
    norm = model.text.norm.numpy().copy()
    train_step(model, build_optimizer(model, "sgd", lr=0.1, trainable=["*norm.weight"]), GemmaTrainingBatch(IDS))
    assert calls[0] > 0 and np.abs(model.text.norm.numpy() - norm).max() > 0
