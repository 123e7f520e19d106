"""Kernels written in UOps: run by tinygrad's emulator, and rendered in official widths for GPUs that are not here."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rendering import recording, render_for, source
from tinygrad import Tensor, dtypes
from tinygrad.dtype import AddrSpace
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp
from training_tools import quick
from uops_models import Drawn, model_of, nothing, small

from gemma4_core.config import GemmaConfig, parse_config, preset_dict
from gemma4_core.contracts.rows import Rows
from gemma4_core.engine.graph_cache import GraphCache
from gemma4_core.engine.portable import PortableSteps, numbers
from gemma4_core.engine.rows import greedy_rows
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.slots import SlotStore
from gemma4_core.model.spans import TokenSpan
from gemma4_core.ops import LAYER_KERNELS, portable
from gemma4_core.weights import DenseMatrix
from gemma4_plugins.devices import uops
from gemma4_plugins.devices.uops import attention, product, single
from gemma4_plugins.devices.uops.layers import served, token_layers
from gemma4_plugins.layouts.int8 import Int8Matrix

EMULATED = "PYTHON"
SHARED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
TWO = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
FEW_IDS = {"vocab_size": 96, "vocab_size_per_layer_input": 96}
ODD = {"hidden_size": 66, "intermediate_size": 70, "head_dim": 12, "num_attention_heads": 6}
MODELS: dict[str, tuple[GemmaConfig, str]] = {
    "shared fp32": (small("tiny-e2b", **SHARED), "fp32"),
    "shared bf16": (small("tiny-e2b", **SHARED), "bf16"),
    "experts fp32": (small("tiny-26b", **TWO), "fp32"),
    "experts int8": (small("tiny-26b", **TWO), "int8"),
    # rows that no vector divides, heads and widths that are no powers of two
    "odd fp32": (small("tiny-31b", **TWO, **ODD), "fp32"),
}
POSITIONS = (3, 75)
"""Within every window; behind the ring's first round, and with several slices."""


def filled(model: GemmaModel, positions: int) -> SlotStore:
    """A cache of random keys and values, the same on every device."""
    storage = SlotStore(model, 1, positions)
    random = np.random.default_rng(5)
    for held in storage.layers:
        if held is not None:
            values = Tensor(random.standard_normal(held.shape, np.float32), device="CPU").cast(held.dtype).realize()
            held.assign(values.to(model.device)).realize()
    return storage


def hidden(model: GemmaModel, storage: SlotStore, position: int, own: bool) -> np.ndarray:
    """The final hidden state of a token, from these kernels or from portable operations."""
    text, ids = model.text, Tensor(np.array([[7]], np.int32), device=model.device)
    table, start = text.rotation_table(storage.capacity + model.chunk), numbers(storage, 0, position)[1]
    inputs = text.inputs(ids, text.embed(ids), portable())
    if own:
        found = token_layers(text, inputs, storage.layers, table, start)
        assert found is not None
    else:
        span = TokenSpan(storage.layers, 0, start, model.device)
        found = text.run(inputs, span, table.rows(start, 1), portable())
    with nullcontext() if own else quick():  # an emulator is slower at plain loops
        values: np.ndarray = found.float().numpy().ravel()
    return values


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small thread groups and slices, since each thread is emulated, and tiny models have few positions. A thread takes
    several rows of a large matrix."""
    for module, name, value in ((product, "THREADS", 64), (attention, "JOINING", 64), (attention, "SHORT", 8),
                                (product, "ENOUGH_GROUPS", 4)):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(
    ("name", "positions"),
    [("experts int8", POSITIONS[1:]),
     *(pytest.param(name, POSITIONS, marks=pytest.mark.slow)
       for name in ("shared bf16", "shared fp32", "experts fp32", "odd fp32")),
     pytest.param("experts int8", POSITIONS[:1], marks=pytest.mark.slow)],
)  # fmt: skip
def test_layers_are_those_of_portable_operations(
    name: str, positions: tuple[int, ...], cpu: str, few_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("shared bf16", "experts fp32"):
        monkeypatch.setattr(product, "ENOUGH_GROUPS", 256)  # a row per thread
    config, kind = MODELS[name]
    drawn = Drawn()
    mine = model_of(config, kind, EMULATED, portable(), drawn.on(EMULATED))
    theirs = model_of(config, kind, cpu, portable(), drawn.on(cpu))
    for position in positions:
        ours, other = filled(mine, 80), filled(theirs, 80)
        got, expected = hidden(mine, ours, position, True), hidden(theirs, other, position, False)
        assert distance(got, expected) < (2e-6 if kind == "fp32" else 3e-2)
        for held, right in zip(ours.layers, other.layers, strict=True):
            if held is not None and right is not None:  # what was there, and the new key and value
                assert distance(held.float().numpy(), right.float().numpy()) < (2e-6 if kind == "fp32" else 3e-2)


@pytest.mark.slow
def test_bf16_is_nearer_to_fp32_than_the_portable_form(cpu: str, few_threads: None) -> None:
    config, kind = small("tiny-e2b", **TWO, num_kv_shared_layers=0), "bf16"
    drawn = Drawn()
    mine, theirs = (model_of(config, kind, device, portable(), drawn.on(device)) for device in (EMULATED, cpu))

    def rounded(name: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        values = Tensor(drawn.numbers(name, shape, dtype), device=cpu)
        return values.cast(dtypes.bfloat16).float().contiguous().realize()

    truth_model = model_of(config, "fp32", cpu, portable(), rounded)
    truth = hidden(truth_model, filled(truth_model, 40), 20, False)
    ours, usual = hidden(mine, filled(mine, 40), 20, True), hidden(theirs, filled(theirs, 40), 20, False)
    assert np.linalg.norm(ours - truth) < np.linalg.norm(usual - truth)


def chosen(model: GemmaModel, storage: SlotStore, steps: int) -> list[tuple[int, float]]:
    """Tokens and log-probabilities of the captured graph, from position 20 on."""
    token, found = 7, []
    for position in range(20, 20 + steps):
        ids, slot, at, wanted = (np.array([n], np.int32) for n in (token, 0, position, 0))
        [(token, logprob)] = model.engine.run(storage, Rows(ids, slot, at, wanted), greedy_rows(1)).read()
        found.append((token, round(logprob, 4)))
    return found


def test_a_captured_step_chooses_what_the_portable_step_chooses_and_is_kept(
    cpu: str, few_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kind = small("tiny-e2b", **TWO, num_kv_shared_layers=0, **FEW_IDS), "fp32"
    drawn = Drawn()
    plain = model_of(config, kind, cpu, portable(), drawn.on(cpu))
    held = filled(plain, 40)
    expected = chosen(plain, held, 3)
    assert plain.engine.layer_kernels(held) == 0 < plain.engine.step_kernels(held)
    for name, value in (("GEMMA4_KEEP_GRAPHS", "1"), ("XDG_CACHE_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    # caches of the same size, so that they are filled alike
    operations = dataclasses.replace(uops.operations(), prefill_chunk=plain.chunk)
    model = model_of(config, kind, EMULATED, operations, drawn.on(EMULATED))
    storage = filled(model, 40)
    assert chosen(model, storage, 3) == expected
    assert model.engine.layer_kernels(storage) == 8 * 2 < model.engine.step_kernels(storage)
    # what portable operations make is another graph
    paths = []
    for model.operations in (operations, portable()):
        paths.append(GraphCache(model, storage, {}).path("graph"))
    assert paths[0] != paths[1]
    # a later process takes the graph from disk, and traces nothing
    monkeypatch.setattr(PortableSteps, "_token_function", lambda *_, **__: lambda *_: pytest.fail("traced again"))
    later = model_of(config, kind, EMULATED, operations, drawn.on(EMULATED))
    assert chosen(later, filled(later, 40), 2) == expected[:2]


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_single_products(kind: str, cpu: str) -> None:
    random = np.random.default_rng(1)
    weights, x = (random.standard_normal(shape).astype(np.float32) for shape in ((40, 96), (1, 1, 96)))
    dtype = dtypes.float32 if kind == "fp32" else dtypes.bfloat16
    given = Tensor(x, device=EMULATED).cast(dtype).contiguous().realize()
    if kind == "int8":
        numbers = random.integers(-127, 128, (40, 96), np.int8)
        scales = random.uniform(0.5, 1.5, 40).astype(np.float32)
        matrix: Any = Int8Matrix(*(Tensor(v, device=EMULATED).contiguous().realize() for v in (numbers, scales)), dtype)
        wide = numbers * scales[:, None]
    else:
        tensor = Tensor(weights, device=EMULATED).cast(dtype).contiguous().realize()
        matrix, wide = DenseMatrix(tensor), tensor.float().numpy()
    right = wide.astype(np.float64) @ given.float().numpy().ravel()
    got = single.linear(given, matrix)
    assert got.shape == (1, 1, 40) and got.dtype == dtype
    assert distance(got.float().numpy().ravel(), right) < (1e-6 if kind == "fp32" else 4e-3)
    capped = single.logits(given[:, 0], matrix, 30.0)
    assert capped.shape == (1, 40) and capped.dtype == dtypes.float32
    np.testing.assert_allclose(capped.numpy().ravel(), np.tanh(right / 30) * 30, rtol=1e-4, atol=1e-4)
    two = single.linear(given.expand(1, 2, 96), matrix)  # several rows are the portable form's
    assert two.shape == (1, 2, 40) and distance(two.float().numpy()[0, 1], right) < 1e-2


def test_gated_mlp_of_several_rows(cpu: str) -> None:
    random = np.random.default_rng(1)
    made = lambda *shape: Tensor(random.standard_normal(shape).astype(np.float32), device=cpu).realize()  # noqa: E731
    x, gate, up, down = made(1, 5, 64), *(DenseMatrix(made(*shape)) for shape in ((96, 64), (96, 64), (64, 96)))
    got, right = single.gated_mlp(x, gate, up, down), portable().gated_mlp(x, gate, up, down)
    assert got.shape == (1, 5, 64) and distance(got.numpy(), right.numpy()) < 1e-6


def test_what_is_not_served_is_left_to_portable_operations(cpu: str) -> None:
    config, kind = MODELS["shared fp32"]
    model = model_of(config, kind, cpu, uops.operations(), Drawn().on(cpu))
    one, two = SlotStore(model, 1, 40), SlotStore(model, 2, 40)
    assert served(model.text, one.layers) and not served(model.text, two.layers)
    ids = Tensor(np.array([[7, 8]], np.int32), device=cpu)
    inputs = model.text.inputs(ids, model.text.embed(ids), portable())
    table, start = model.text.rotation_table(one.capacity + model.chunk), numbers(one, 0, 3)[1]
    assert token_layers(model.text, inputs, one.layers, table, start) is None  # two positions
    place = model.text.layers[1].feed_forward.gate
    plain = place.matrix
    assert isinstance(plain, DenseMatrix)

    class Wrapped(DenseMatrix):
        """Computes something else with what it holds."""

    for other in (Wrapped(plain.tensor), DenseMatrix(plain.tensor.cast(dtypes.float16).realize(), dtypes.float32),
                  DenseMatrix(plain.tensor.cast(dtypes.bfloat16).realize(), dtypes.float32)):  # fmt: skip
        place.matrix = other
        assert not served(model.text, one.layers)
    place.matrix = plain
    assert served(model.text, one.layers)


def test_a_model_that_is_too_wide_is_left_to_portable_operations(cpu: str) -> None:
    for change in ({"hidden_size": 8192}, {"head_dim": 4096}):
        config = small("tiny-31b", **TWO, **change)
        model = model_of(config, "bf16", "NULL", uops.operations(), nothing("NULL"))
        storage = SlotStore(model, 1, 40)
        ids, start = Tensor(np.array([[7]], np.int32), device="NULL"), numbers(storage, 0, 3)[1]
        inputs = model.text.inputs(ids, model.text.embed(ids), portable())
        table = model.text.rotation_table(storage.capacity + model.chunk)
        assert served(model.text, storage.layers)
        assert token_layers(model.text, inputs, storage.layers, table, start) is None


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    on = uops.operations()
    assert on.name == "uops" and on.layers is not None and on.linear is not portable().linear
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    assert uops.operations() == portable() and portable().layers is None


# ---- official widths


def first_layers(preset: str, every: int) -> dict[str, Any]:
    """The config of a model's first layers, as far as each ``every`` of them has one with full attention: those, or
    with shared keys and values as many that share."""
    raw = preset_dict(preset, towers=False)
    text = raw["text_config"]
    assert text["layer_types"][:every] == ["sliding_attention"] * (every - 1) + ["full_attention"]
    shared = every if text["num_kv_shared_layers"] else 0
    text |= {"num_hidden_layers": every + shared, "num_kv_shared_layers": shared,
             "layer_types": text["layer_types"][: every + shared]}  # fmt: skip
    return raw


def scheduled(raw: dict[str, Any], kind: str, capacity: int = 512) -> tuple[int, list[UOp]]:
    """Layers, and the kernels of a token in order, on a device that executes nothing."""
    config = parse_config(raw)
    with Context(DEV="NULL"), recording():
        model = model_of(config, kind, "NULL", uops.operations(), nothing("NULL"))
        storage = SlotStore(model, 1, capacity)
        text, start = model.text, numbers(storage, 0, capacity - 1)[1]
        table = text.rotation_table(capacity + model.chunk)
        ids = Tensor(np.array([[7]], np.int32), device="NULL").realize()
        inputs = text.inputs(ids, text.embed(ids), model.operations)
        out = token_layers(text, inputs, storage.layers, table, start)
        assert out is not None
        linear, _ = out.linear_with_vars()
    calls = [call.src[0] for call in linear.src if call.op is Ops.CALL and call.src[0].op is Ops.SINK]
    return config.text_config.num_hidden_layers, calls


@pytest.fixture(scope="module")
def official() -> dict[str, tuple[int, list[UOp]]]:
    cases = ("E2B", "bf16", 5), ("26B-A4B", "int8", 6)
    return {f"{preset}@{kind}": scheduled(first_layers(preset, every), kind) for preset, kind, every in cases}


def of_layers(kernels: list[UOp]) -> list[UOp]:
    return [kernel for kernel in kernels if kernel.arg.name.startswith(LAYER_KERNELS)]


def test_a_layer_is_eight_kernels_at_most(official: dict[str, tuple[int, list[UOp]]]) -> None:
    long = scheduled(first_layers("31B", 6), "bf16", 40000)
    for (layers, kernels), each in ((official["E2B@bf16"], 8), (official["26B-A4B@int8"], 8), (long, 6)):
        assert len(of_layers(kernels)) == each * layers
        assert len(kernels) < each * layers + 12  # the token's own: embeddings, per-layer inputs, the last norm


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "kind", "each"), [("E2B", "bf16", 8), ("26B-A4B", "int8", 8), ("31B", "bf16", 6)])
def test_a_layer_is_eight_kernels_at_most_in_all_layers(preset: str, kind: str, each: int) -> None:
    layers, kernels = scheduled(preset_dict(preset, towers=False), kind, 40000 if preset == "31B" else 512)
    assert len(of_layers(kernels)) == each * layers and len(kernels) < each * layers + 12


KINDS = {"gated", "product", "stream_3", "experts_8", "both_down", "attend", "join"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", ["METAL", "AMD", "CUDA"])
@pytest.mark.parametrize(
    "wanted", [{"product", "attend", "join"}, pytest.param(KINDS, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_they_load_vectors_and_reduce_in_groups(
    target: str, wanted: set[str], official: dict[str, tuple[int, list[UOp]]]
) -> None:
    renderer = render_for(target)
    vector, barrier, shared = {
        "METAL": (r"\*\(\(device uint4\*\)", "threadgroup_barrier", "threadgroup "),
        "AMD": (r"\*\(\(unsigned_int4\*\)", "__builtin_amdgcn_s_barrier", r"__attribute__\(\(shared"),
        "CUDA": (r"\*\(\(uint4\*\)", "__syncthreads", "__shared__"),
    }[target]
    kernels = {kernel.arg.name: kernel for _, all_kernels in official.values() for kernel in of_layers(all_kernels)}
    for what in sorted(wanted):
        text = source(next(k for name, k in kernels.items() if name.startswith(f"layer_{what}")), renderer)
        assert re.search(barrier, text) and re.search(shared, text), what
        if what != "join":  # which reads single numbers that slices left
            assert re.search(vector, text), (what, text[:3000])


def test_every_kernel_fits_into_what_groups_may_share(official: dict[str, tuple[int, list[UOp]]]) -> None:
    for _, kernels in official.values():
        for kernel in of_layers(kernels):
            held = [u for u in kernel.toposort() if u.op is Ops.BUFFER and u.arg.addrspace is AddrSpace.LOCAL]
            assert sum(int(u.max_numel()) * u.dtype.itemsize for u in held) <= 32768
            assert sum(u.op is Ops.PARAM for u in kernel.toposort()) <= 31
