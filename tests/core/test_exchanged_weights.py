"""Weights exchanged under a model: fast paths see it, graphs and caches of the old ones are not used again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from reference_data import load
from tinygrad import Tensor
from training_tools import quick, short

from gemma4_core import DenseMatrix, InputError, Matrix, ModelTransform, Option, hookimpl, load_pretrained, registry
from gemma4_core.model import GemmaModel
from gemma4_plugins.devices.cpu.kernels.structs import supported
from gemma4_plugins.devices.cuda.kernels.table import storage_of
from gemma4_plugins.layouts.int8 import Int8Matrix

IDS = load("dense").ids[0].tolist()[:16]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


class Negated(Matrix):
    """Hands on the parts of what it wraps, and computes something else."""

    def __init__(self, base: Matrix) -> None:
        self.base, self.shape, self.dtype = base, base.shape, base.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return self.base.parts()

    def matmul(self, x: Tensor) -> Tensor:
        return -self.base.matmul(x)

    def rows(self, ids: Tensor) -> Tensor:
        return -self.base.rows(ids)

    def dense(self) -> Tensor:
        return -self.base.dense()


class Derived(DenseMatrix):
    """Of a kind that the kernels know, and yet another."""

    def matmul(self, x: Tensor) -> Tensor:
        return -super().matmul(x)


@pytest.fixture(name="model")
def model_fixture() -> GemmaModel:
    return short("dense")


def tokens(model: GemmaModel, cache: Any = None) -> list[int]:
    return list(model.generate(IDS, max_new_tokens=5, stop_ids=(), cache=cache))


def negate(model: GemmaModel) -> str:
    name = next(name for name in model.places if name.endswith("layers.1.mlp.down_proj.weight"))
    place = model.places[name]
    assert isinstance(place.matrix, Matrix)
    place.matrix = Negated(place.matrix)
    model.invalidate()
    return name


def test_kernels_read_no_parts_of_kinds_that_they_do_not_know(cpu: str) -> None:
    values, scale = Tensor([[1, -2]], dtype="int8").contiguous().realize(), Tensor([0.5]).contiguous().realize()
    bf16 = Tensor([[1.0, 2.0]], dtype="bfloat16").contiguous().realize()
    held = {"int8": Int8Matrix(values, scale, bf16.dtype), "bf16": DenseMatrix(bf16)}
    place = load_pretrained(load("dense").folder, device="cpu").places.popitem()[1]
    for kind, matrix in held.items():
        place.matrix = matrix
        assert supported(matrix) and storage_of(place) == kind
        place.matrix = Negated(matrix)
        assert not supported(place.matrix) and storage_of(place) is None
    place.matrix = Derived(bf16)
    assert not supported(place.matrix) and storage_of(place) is None


def test_a_wrapper_is_seen_by_steps_chunks_and_logits(model: GemmaModel) -> None:
    cache = model.make_cache()
    before = tokens(model, cache)
    name = negate(model)
    wrapped = tokens(model)
    logits = model.forward_ids(IDS)[0].numpy()
    chunked = model.forward_ids(IDS, cache=model.make_cache())[0].numpy()
    model.places[name].matrix = DenseMatrix(model.places[name].matrix.dense().contiguous().realize())
    model.invalidate()
    assert wrapped == tokens(model) != before
    assert np.allclose(logits, model.forward_ids(IDS)[0].numpy(), atol=1e-4)
    assert np.allclose(logits, chunked, atol=1e-4)


def test_a_cache_of_old_weights_starts_over(model: GemmaModel) -> None:
    cache, other = model.make_cache(), model.make_cache()
    before = tokens(model, cache)
    assert tokens(model, cache) == before
    tokens(model, other)
    negate(model)
    del other  # its buffers go back to the model, with graphs of the old weights
    cold = tokens(model)
    assert cold != before and tokens(model, cache) == cold == tokens(model, cache)


def test_values_written_in_place_keep_graphs_but_not_what_caches_hold(model: GemmaModel) -> None:
    cache = model.make_cache()
    before = tokens(model, cache)
    assert cache.storage is not None
    graphs = dict(cache.storage.graphs)
    name = next(name for name in model.places if name.endswith("layers.0.mlp.down_proj.weight"))
    held = model.places[name].matrix.parts()[""]
    held.assign(-held).realize()
    model.invalidate(graphs=False)
    after = tokens(model, cache)
    assert after == tokens(model) != before and cache.storage.graphs == graphs


def test_a_transform_is_checked_before_weights_are_read() -> None:
    calls = []

    def check(context: Any, values: Mapping[str, Any]) -> None:
        calls.append(context.folder)
        raise InputError(f"--no-good '{values['no_good']}'")

    class Plugin:
        @hookimpl
        def gemma4_model_transforms(self) -> list[ModelTransform]:
            apply = lambda model, values: calls.append(model)  # noqa: E731
            return [ModelTransform("no-good", "fails", apply, (Option("--no-good", "Text."),), check=check)]

    registry.register(Plugin(), "no-good")
    try:
        with pytest.raises(InputError, match="'x'"):
            load_pretrained(load("dense").folder, device="cpu", options={"no_good": "x"})
    finally:
        registry.unregister("no-good")
    assert calls == [load("dense").folder]
