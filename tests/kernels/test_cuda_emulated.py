"""The CUDA kernels' logic against the portable operations, on the host: a fiber stands for each GPU thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cuda_emulation
import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from gemma4_core.errors import DeviceError
from gemma4_core.model.ple import HostTable
from gemma4_core.ops.sampling import SamplingState
from gemma4_plugins.devices.cuda.kernels import plan, step

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cuda_check
import cuda_soak

SMALL = cuda_check.TINY | {
    "vocab_size": 192, "vocab_size_per_layer_input": 192, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_attention_heads": 2,
    "num_kv_shared_layers": 2, "sliding_window": 24, "global_head_dim": 128,
}  # fmt: skip
MIXTURE = SMALL | {
    "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
    "num_key_value_heads": 2, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True, "use_double_wide_mlp": False, "enable_moe_block": True, "num_experts": 6,
    "top_k_experts": 6, "moe_intermediate_size": 64, "use_bidirectional_attention": "vision",
}  # fmt: skip

WIDE = SMALL | {
    "vocab_size": 96, "vocab_size_per_layer_input": 96, "hidden_size": 768, "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
}  # fmt: skip
"""Rows of 1536 bytes: stages larger than the least."""


@pytest.fixture
def emulated(cpu: str, plain_loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three multiprocessors with four multiplying warps each, and spans of 32 positions, so that there are several."""
    cuda_emulation.emulate(monkeypatch, blocks=3)
    monkeypatch.setattr(step, "machine", lambda: plan.Machine(3, 230_000, 4, 2))
    monkeypatch.setattr(plan, "SPAN", 32)
    monkeypatch.setattr(cuda_check, "OWN", {"small": SMALL, "mixture": MIXTURE, "wide": WIDE})


@pytest.mark.parametrize(("name", "joined"), [("small", 2), ("mixture@int8", 0)])
def test_steps_and_prompts_are_as_near_to_the_truth_as_the_portable_form(
    name: str, joined: int, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # both ways of putting slices of positions together
    monkeypatch.setattr(plan, "JOINED", joined)
    assert cuda_check.check(name, [0, 100 if joined else 130], [40])


def test_stages_as_large_as_a_row_have_the_same_results(emulated: None) -> None:
    model = cuda_check.model_of("wide")
    made = plan.make_plan(model.text.config, step.machine())
    assert made is not None and made.constants["STAGE_BYTES"] == 16 * (1536 + 16)
    assert cuda_check.check("wide", [20], [])


@pytest.mark.parametrize("portably", [False, True])
def test_a_soak_compares_its_cache_with_single_operations(
    portably: bool, emulated: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_soak.soak("small", 40, portably) and "40 tokens" in capsys.readouterr().out
    monkeypatch.setattr(cuda_soak, "distances", lambda *_: [1e-3, 1e-3, 1e-3, 3e-3])
    assert not cuda_soak.soak("small", 8, portably)


def test_drawn_tokens_are_read_like_greedy_ones(emulated: None) -> None:
    model = cuda_check.model_of("small")
    storage = cuda_check.filled(model, 40)
    drawing = step.decode_step(model.engine.view, storage, True)
    assert isinstance(drawing, step.CudaStep) and drawing.ahead == step.AHEAD
    upload = lambda array: Tensor(array, device="CPU").contiguous().realize()  # noqa: E731
    arrays = (np.array([1, 8, 0.9, 0, 1.1], np.float32), np.array([3], np.uint32), np.zeros((1, 192), np.bool_))
    ours, theirs = (SamplingState(*map(upload, arrays)) for _ in range(2))
    first = drawing(upload(np.array([[7]], np.int32)), 20, ours)
    second = drawing(first[0], 21, ours)  # queued before the first is read
    assert drawing.logits is not None
    theirs.seen.assign(upload(np.arange(192)[None] == first.read()[0])).realize()  # type: ignore[attr-defined]
    expected = model.engine.choose(drawing.logits, 22, theirs)
    token, logprob = second.read()  # type: ignore[attr-defined]
    assert token == expected[0].item() and logprob == pytest.approx(expected[1].item(), abs=1e-4)
    assert (ours.seen.numpy() == theirs.seen.numpy()).all()


def test_the_token_after_a_prompt_is_drawn_by_the_kernel(emulated: None) -> None:
    model = cuda_check.model_of("small")
    greedy = step.decode_step(model.engine.view, cuda_check.filled(model, 40), False)
    assert isinstance(greedy, step.CudaStep)
    upload = lambda array: Tensor(array, device="CPU").contiguous().realize()  # noqa: E731
    arrays = (np.array([1, 8, 0.9, 0, 1.1], np.float32), np.array([5], np.uint32), np.zeros((1, 192), np.bool_))
    ours, theirs = (SamplingState(*map(upload, arrays)) for _ in range(2))
    finished = greedy.finish(upload(np.array([[7]], np.int32)), 20)
    expected = model.engine.choose(finished.logits, 21, theirs)
    token, logprob = finished.choose(model.engine.view, 21, ours)
    assert greedy.chooser is not None
    assert token.item() == expected[0].item() and logprob.item() == pytest.approx(expected[1].item(), abs=1e-4)
    assert (ours.seen.numpy() == theirs.seen.numpy()).all() and ours.seen.numpy().sum() == 1
    assert finished.choose(model.engine.view, 21, None)[0].item() == finished.logits.numpy().argmax()


@pytest.mark.parametrize("name", ["small", "small@int8"])
def test_per_layer_rows_may_come_from_the_host(name: str, emulated: None) -> None:
    model = cuda_check.model_of(name)
    table, token = model.text.ple_table, Tensor(np.array([[7]], np.int32), device="CPU").contiguous().realize()
    assert table is not None and model.ple_host is None
    found = []
    for on_host in (False, True):
        if on_host:
            read = lambda ids: table.matrix.rows(Tensor(ids, device="CPU")).float().numpy()  # noqa: E731
            model.ple_host, model.text.ple_table = HostTable(read, "CPU", dtypes.bfloat16), None
        taken = step.decode_step(model.engine.view, model.pool.take(model, 1, 8), True)
        assert isinstance(taken, step.CudaStep)
        found.append(cuda_check.step_logits(taken, token, 0))
    assert np.isfinite(found[0]).all() and (found[0] == found[1]).all()


def test_int8_numbers_become_bf16(emulated: None) -> None:
    assert step.widens()


def test_a_step_that_does_not_come_is_a_sentence(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: Any = object.__new__(step.CudaStep)
    waiting.history = cuda_emulation.EmulatedHostBuffer((plan.HISTORY, 4), np.uint32)
    monkeypatch.setattr(step, "PATIENCE", 0.01)
    with pytest.raises(DeviceError, match="GEMMA4_KERNELS=portable"):
        waiting.read(7)
    waiting.history.array[7] = [3, np.float32(-0.5).view(np.uint32), 7, 0]
    assert waiting.read(7) == (3, -0.5)
