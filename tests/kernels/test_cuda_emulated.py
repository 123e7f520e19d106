"""The CUDA kernels' logic against the portable operations, on the host: a fiber stands for each GPU thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cuda_emulation
import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from gemma4_core.contracts.rows import SamplingRows
from gemma4_core.engine.rows import greedy_rows
from gemma4_core.engine.scheduler import TokenScheduler
from gemma4_core.engine.sequence import Sequence
from gemma4_core.errors import DeviceError
from gemma4_core.generation.sampling import Sampling
from gemma4_core.model.media import place
from gemma4_core.model.ple import HostTable
from gemma4_core.model.slots import SlotStore
from gemma4_plugins.devices.cuda.kernels import plan, step

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cuda_check
import cuda_soak
from cuda_models import ModelWithEngine, chunk_rows, one_row

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


def stepping(model: ModelWithEngine, positions: int, slots: int = 1) -> step.CudaStep:
    """The kernels' step against slots of random keys and values."""
    made = step.step(model.engine.view, cuda_check.filled(model, positions, count=slots))
    assert isinstance(made, step.CudaStep)
    return made


@pytest.mark.parametrize(
    ("name", "joined", "positions", "prompts"),
    [("mixture@int8", 0, [130], []), pytest.param("small", 2, [100], [40], marks=pytest.mark.slow),
     pytest.param("small", 2, [0], [], marks=pytest.mark.slow),
     pytest.param("mixture@int8", 0, [0], [40], marks=pytest.mark.slow)],
)  # fmt: skip
def test_steps_and_prompts_are_as_near_to_the_truth_as_the_portable_form(
    name: str, joined: int, positions: list[int], prompts: list[int], emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # both ways of putting slices of positions together
    monkeypatch.setattr(plan, "JOINED", joined)
    assert cuda_check.check(name, positions, prompts)


@pytest.mark.slow
def test_stages_as_large_as_a_row_have_the_same_results(emulated: None) -> None:
    model = cuda_check.model_of("wide")
    made = plan.make_plan(model.text.config, step.machine())
    assert made is not None and made.constants["STAGE_BYTES"] == 16 * (1536 + 16)
    assert cuda_check.check("wide", [20], [])


@pytest.mark.parametrize("portably", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_soak_compares_its_cache_with_single_operations(
    portably: bool, emulated: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_soak.soak("small", 40, portably) and "40 tokens" in capsys.readouterr().out
    monkeypatch.setattr(cuda_soak, "distances", lambda *_: [1e-3, 1e-3, 1e-3, 3e-3])
    assert not cuda_soak.soak("small", 8, portably)


def test_drawn_tokens_are_read_like_greedy_ones(emulated: None) -> None:
    """Of the second of two slots, whose counts are the second row of the table."""
    model = cuda_check.model_of("small")
    drawing = stepping(model, 40, slots=2)
    assert drawing.ahead == step.AHEAD
    params, seed = np.array([[1, 8, 0.9, 0, 1.1, 0, 0]], np.float32), np.array([3], np.uint32)
    ours, theirs = (SamplingRows(params, seed, Tensor.zeros(2, 192, dtype=dtypes.int32).contiguous().realize())
                    for _ in range(2))  # fmt: skip
    first = drawing(one_row(np.array([7], np.int32), 20, 1), ours)
    second = drawing(one_row(first.ids, 21, 1), ours, logits=True)  # queued before the first is read
    assert second.logits is not None and ours.counts is not None and theirs.counts is not None
    [(token, _)] = first.read()
    theirs.counts.assign(Tensor((np.arange(192) == token) * np.array([[0], [1]], np.int32))).realize()
    [expected] = model.engine.view.choose(second.logits, one_row(np.array([token]), 21, 1), theirs).read()
    assert second.read() == [(expected[0], pytest.approx(expected[1], abs=1e-4))]
    assert drawing.ahead == step.AHEAD
    counts = ours.counts.numpy()
    assert (counts == theirs.counts.numpy()).all() and not counts[0].any() and counts[1].sum() == 2
    assert drawing(one_row(np.array([7], np.int32), 20), greedy_rows(1)).logits is None


def test_the_token_after_a_prompt_is_drawn_by_the_kernel(emulated: None) -> None:
    model = cuda_check.model_of("small")
    made = stepping(model, 40)
    assert made.chunked and made.max_rows == 1024
    params, seed = np.array([[1, 8, 0.9, 0, 1, 0, 0]], np.float32), np.array([5], np.uint32)
    sampling = SamplingRows(params, seed)
    rows = chunk_rows(np.arange(3, 10), 0, [6])
    assert made.serves(rows, sampling)
    done = made(rows, sampling, logits=True)
    assert made.chooser is not None and done.logits is not None
    [expected] = model.engine.view.choose(done.logits, rows, sampling).read()
    assert done.read() == [(expected[0], pytest.approx(expected[1], abs=1e-4))]
    assert made(rows, greedy_rows(1)).read()[0][0] == done.logits.numpy().argmax()


def test_what_the_kernel_does_not_choose_is_chosen_in_a_graph(emulated: None) -> None:
    """A presence penalty, and rows of which each one is wanted. Such steps are read before the next is queued."""
    model = cuda_check.model_of("small")
    made = stepping(model, 40)
    params = np.array([[0, 0, 1, 0, 1, 2, 0]], np.float32)
    counts = Tensor.zeros(1, 192, dtype=dtypes.int32).contiguous().realize()
    first = made(one_row(np.array([7], np.int32), 20), SamplingRows(params, np.zeros(1, np.uint32), counts))
    [(token, _)] = first.read()
    assert made.ahead == 0 and counts.numpy()[0, token] == 1
    assert made(one_row(first.ids, 21), greedy_rows(1)).read() and made.ahead == step.AHEAD
    ids = np.arange(3, 8)
    checked = made(chunk_rows(ids, 22, range(5)), greedy_rows(5), hidden=True)
    assert checked.hidden is not None and checked.logits is not None and len(checked.read()) == 5
    last = made(chunk_rows(ids, 22, [4]), greedy_rows(1), logits=True).logits
    assert last is not None and cuda_check.relative(checked.logits.numpy()[4], last.numpy()[0]) < 3e-2
    expected = checked.hidden.float().numpy()[4]
    states = made(chunk_rows(ids, 22, [4]), None, hidden=True).hidden
    assert states is not None and states.shape == (1, 64)
    np.testing.assert_array_equal(states.float().numpy()[0], expected)


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"temperature": 1.0, "repetition_penalty": 1.2}, marks=pytest.mark.slow),
     {"presence_penalty": 0.5}],
)
def test_two_sequences_have_the_tokens_that_each_has_alone(settings: dict[str, float], emulated: None) -> None:
    """Greedy ones, those that the kernel draws, and those that a captured graph chooses; both slots are used."""
    model = cuda_check.model_of("small")
    prompts = ([2, 5, 9, 70], [2, 90, 17, 33, 41, 8, 6])

    def tokens(which: list[int]) -> list[list[int]]:
        scheduler = TokenScheduler(model.engine, SlotStore(model, 2, 64), parallel=2)
        sequences = [
            Sequence(place(model, np.array([prompts[n]], np.int32), {}, capture=True), 5,
                     Sampling(**settings, seed=n).choices(), frozenset())  # type: ignore[arg-type]
            for n in which
        ]  # fmt: skip
        for sequence in sequences:
            scheduler.submit(sequence)
        while not scheduler.idle:
            scheduler.step()
        assert all(sequence.error is None and len(sequence.tokens) == 5 for sequence in sequences)
        return [sequence.tokens for sequence in sequences]

    assert tokens([0, 1]) == tokens([0]) + tokens([1])


def test_rows_that_are_left_to_others(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cuda_check.model_of("small")
    made = stepping(model, 8, slots=2)
    two = chunk_rows(np.arange(2), 0)
    assert made.serves(two, None)
    two.slot[:] = 0, 1
    assert not made.serves(two, None) and not made.serves(chunk_rows(np.zeros(1025), 0), None)
    monkeypatch.setattr(step, "fits", lambda text: False)
    made = stepping(model, 8)
    one = one_row(np.array([7], np.int32), 0)
    assert made.max_rows == 1 and made.serves(one, greedy_rows(1)) and not made.serves(one, None)
    assert not made.serves(chunk_rows(np.arange(2), 0), None)
    made(chunk_rows(np.array([5]), 0), None)
    with pytest.raises(DeviceError, match="shared memory"):
        made(one, greedy_rows(1), hidden=True)


def test_ids_from_the_host_are_not_overwritten_while_they_wait(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    made = stepping(cuda_check.model_of("small"), 8)
    monkeypatch.setattr(made, "_launch", lambda *_: None)
    monkeypatch.setattr(step.launch, "wait", lambda: waited.append(made.taken))
    for n in range(2 * plan.HISTORY + 1):
        at, _ = made._token(np.array([n], np.int32))
        assert at == made.given.address + 4 * (n % plan.HISTORY) and made.given.array[n % plan.HISTORY] == n
    assert waited == [plan.HISTORY, 2 * plan.HISTORY]


@pytest.mark.parametrize("name", ["small", pytest.param("small@int8", marks=pytest.mark.slow)])
def test_per_layer_rows_may_come_from_the_host(name: str, emulated: None) -> None:
    model = cuda_check.model_of(name)
    table, token = model.text.ple_table, np.array([7], np.int32)
    assert table is not None and model.ple_host is None
    found = []
    for on_host in (False, True):
        if on_host:
            read = lambda ids: table.matrix.rows(Tensor(ids, device="CPU")).float().numpy()  # noqa: E731
            model.ple_host, model.text.ple_table = HostTable(read, "CPU", dtypes.bfloat16), None
        made = stepping(model, 8)
        assert made.ahead == (0 if on_host else step.AHEAD)
        found.append(cuda_check.step_logits(made, token, 0))
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
