"""Programs per kind of layer: shared by layers, shapes and processes, bound to weights, within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Tensor, dtypes
from tinygrad.uop import Ops
from training_tools import quick, reference_batch, short, tiny

from gemma4_core import GemmaTrainingBatch, InputError, build_optimizer, train_step
from gemma4_core.model import GemmaModel
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.programs import compiling
from gemma4_core.training.programs.kinds import Walk
from gemma4_core.training.programs.plan import Plan, Trained
from gemma4_core.training.programs.steps import Steps
from gemma4_core.training.programs.tracing import placeholder, trace, written

IDS = np.random.default_rng(0).integers(3, 300, (2, 40))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Grows with each program that is traced."""
    made: list[str] = []
    plain = compiling.Task.trace

    def trace(task: compiling.Task, device: str) -> compiling.Program:
        made.append(next(iter(task.inputs)))
        return plain(task, device)

    monkeypatch.setattr(compiling.Task, "trace", trace)
    with quick():
        yield made


def trained(model: GemmaModel) -> dict[str, Tensor]:
    return {name: t for name, t in model.named_tensors().items() if name.endswith(("proj.weight", "norm.weight"))}


def gradients(
    model: GemmaModel, batch: GemmaTrainingBatch, limit: int | None = None, checkpointing: bool = False
) -> tuple[dict[str, np.ndarray], int]:
    """Gradients of a batch, and the number of layers that keep what their way back needs."""
    steps = Steps(model, trained(model))
    steps.memory_limit = limit
    _, found = steps.run([CheckedBatch.of(model, batch)], checkpointing)
    (one,) = steps.passes.values()
    return {name: np.array(g.numpy()) for name, g in found.items()}, one.kept_layers


@pytest.mark.parametrize("name", ["dense", "e2b"])
def test_layers_of_a_kind_share_their_programs(name: str, traced: list[str]) -> None:
    model = tiny(name)
    kinds = {Walk(layer).form for layer in model.text.layers}
    assert len(kinds) < len(model.text.layers)
    gradients(model, reference_batch(name))
    # a layer whose keys others share has programs of its own
    assert traced.count("h") - 1 <= len(kinds) + len({x.donor for x in model.config.text_config.layers} - {None})


def test_what_is_kept_and_what_is_computed_again_have_the_same_bits(traced: list[str]) -> None:
    model, batch = tiny("e2b"), reference_batch("e2b")
    kept, count = gradients(model, batch, limit=1 << 40)
    again, none = gradients(model, batch, checkpointing=True)
    assert (count, none) == (len(model.text.layers), 0)
    assert kept.keys() == again.keys() and all(np.array_equal(kept[name], again[name]) for name in kept)


def test_a_second_step_and_another_length_of_the_bucket_trace_nothing(traced: list[str]) -> None:
    model = short()
    optimizer = build_optimizer(model, "adamw", lr=0.01)
    train_step(model, optimizer, GemmaTrainingBatch(IDS), max_norm=1.0)
    traced.clear()
    for length in (40, 37, 48):
        train_step(model, optimizer, GemmaTrainingBatch(np.resize(IDS, (2, length))), max_norm=1.0)
    assert not traced and optimizer.shapes == 1
    train_step(model, optimizer, GemmaTrainingBatch(np.resize(IDS, (2, 50))), max_norm=1.0)
    assert traced and optimizer.shapes == 2


def test_exchanged_weights_are_seen_and_trace_nothing(traced: list[str]) -> None:
    model, other = short(), short()
    batch = [CheckedBatch.of(model, GemmaTrainingBatch(IDS))]
    steps = Steps(model, {})
    before = steps.run(batch)[0].item()
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    place = model.places[name]
    tensor = place.matrix.parts()[""]
    count = len(traced)
    tensor.replace((tensor * 1.5).contiguous().realize())
    changed = steps.run(batch)[0].item()
    tensor.assign(other.places[name].matrix.parts()[""])
    assert steps.run(batch)[0].item() == before != changed
    assert len(traced) == count


def test_exchanged_parameters_are_updated(traced: list[str]) -> None:
    model, other = short(), short()
    batch, name = GemmaTrainingBatch(IDS), "model.language_model.layers.0.mlp.down_proj.weight"
    results = []
    for exchanged in (False, True):
        one = other if exchanged else model
        optimizer = build_optimizer(one, "sgd", lr=0.1, trainable=name)
        train_step(one, optimizer, batch)
        if exchanged:
            tensor = one.named_tensors()[name]
            tensor.replace((tensor + 0).contiguous().realize())
        train_step(one, optimizer, batch)
        results.append(one.named_tensors()[name].numpy())
    assert np.array_equal(*results)


def test_programs_outlive_the_process(
    traced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA4_KEEP_GRAPHS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = gradients(short(), GemmaTrainingBatch(IDS))[0]
    count = len(traced)
    second = gradients(short(), GemmaTrainingBatch(IDS))[0]
    assert count and len(traced) == count
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    for file in tmp_path.glob("gemma4/graphs/*.graph"):
        file.write_bytes(file.read_bytes()[:-9])
    third = gradients(short(), GemmaTrainingBatch(IDS))[0]
    assert len(traced) == 2 * count and all(np.array_equal(first[name], third[name]) for name in first)


def test_the_keys_of_programs_that_add_gradients_do_not_depend_on_the_order_of_a_set() -> None:
    model = short()
    every = frozenset(map(id, trained(model).values()))
    batch = CheckedBatch.of(model, GemmaTrainingBatch(IDS))
    plan = Plan(model, Steps(model, {}).forms(batch), Trained(every, every))
    sums = [[name for name in task.inputs if name.startswith("sum of ")] for task in plan.tasks.values()]
    assert max(map(len, sums)) > 4 and all(found == sorted(found) for found in sums)


def test_small_kernels_without_sums_are_told_apart(cpu: str) -> None:
    x = placeholder(64, dtype=dtypes.float32, device=cpu)
    program = trace(lambda x: {"twice": x * 2, "sum": x.sum()}, {"x": x}, {})
    kinds = {program.names[written(call)[0]]: call for call in program.calls}
    assert [compiling.elementwise_below(kinds[name], 1024) for name in ("twice", "sum")] == [True, False]
    assert not compiling.elementwise_below(kinds["twice"], 512)
    done = compiling.compiled({"both": program}, 1024)["both"]
    assert [call.src[0].op for call in done.calls] == [Ops.PROGRAM] * len(program.calls)


def test_a_limit_that_nothing_kept_exceeds_is_refused_with_its_numbers(traced: list[str]) -> None:
    model = short()
    steps = Steps(model, trained(model))
    steps.memory_limit = 1000
    with pytest.raises(InputError, match=r"needs .*B of memory beside weights.* and 0 B may be used"):
        steps.run([CheckedBatch.of(model, GemmaTrainingBatch(IDS))])
