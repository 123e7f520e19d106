"""``sample``: each row's choice against its definition in fp64, and the same alone and in company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling_cases import OFF, M, V, case, sampled
from tinygrad import Tensor

from gemma4_core.contracts.rows import SamplingRows
from gemma4_core.ops.sampling import IN_PROMPT, SamplingTensors, hashed_uniform, sample

pytestmark = pytest.mark.usefixtures("plain_loops", "cpu")


def noise(given: dict[str, np.ndarray]) -> np.ndarray:
    uniform = hashed_uniform(Tensor(given["seed"]), Tensor(given["position"]), V).numpy().astype(np.float64)
    assert ((uniform > 0) & (uniform < 1)).all()
    return -np.log(-np.log(uniform))


def reference(given: dict[str, np.ndarray], row: int) -> np.ndarray:
    """Scores fp64 ``[V]`` of which the largest is chosen."""
    temperature, top_k, top_p, min_p, repetition, presence, frequency = given["params"][row].astype(np.float64)
    scores = given["logits"][row].astype(np.float64) + given.get("bias", np.zeros((M, V)))[row]
    if "counts" in given:
        counts = given["counts"][row].astype(np.int64)
        for token in given["drafted"][row] if "drafted" in given else []:
            counts[token] += token >= 0
        generated = np.where(counts >= IN_PROMPT, counts - IN_PROMPT, counts)
        scores = np.where(counts > 0, np.where(scores > 0, scores / repetition, scores * repetition), scores)
        scores = scores - presence * (generated > 0) - frequency * generated
    if "mask" in given:
        bits = given["mask"][row][:, None] >> np.arange(32, dtype=np.uint32) & 1
        scores = np.where(bits.reshape(-1)[:V] != 0, scores, -np.inf)
    if temperature == 0:
        return scores
    scores = scores / temperature
    keep = np.ones(V, bool)
    if top_k:
        keep &= scores >= np.sort(scores)[-int(top_k)]
    if top_p < 1:
        share = softmax(np.where(keep, scores, -np.inf))
        order = np.argsort(-share)
        enough = int(np.searchsorted(np.cumsum(share[order]), top_p)) + 1
        keep &= np.isin(np.arange(V), order[:enough])
        kept = softmax(np.where(keep, scores, -np.inf))
        keep &= kept >= min_p * kept.max()
    elif min_p:
        share = softmax(np.where(keep, scores, -np.inf))
        keep &= share >= min_p * share.max()
    return np.where(keep, scores + noise(given)[row], -np.inf)


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


@pytest.mark.parametrize("without", [(), ("drafted",), ("counts", "drafted"), ("mask",), ("bias", "mask"),
                                     ("counts", "drafted", "bias", "mask")])
def test_every_row_chooses_what_its_settings_say(without: tuple[str, ...]) -> None:
    given = {name: array for name, array in case().items() if name not in without}
    ids, logprobs = sampled(given)
    for row in range(M):
        scores = reference(given, row)
        first, second = np.sort(scores)[-2:][::-1]
        assert ids[row] == scores.argmax() or first - second < 1e-4, (row, given["params"][row])
        logits = given["logits"][row].astype(np.float64)
        model = logits[ids[row]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert logprobs[row] == pytest.approx(model, abs=1e-4)


def test_a_row_alone_is_the_row_in_company_bit_for_bit() -> None:
    given = case(1)
    ids, logprobs = sampled(given)
    for row in (0, 5, 11, M - 1):
        alone, probability = sampled(given, slice(row, row + 1))
        assert alone[0] == ids[row] and probability[0].tobytes() == logprobs[row].tobytes()
    order = np.random.default_rng(0).permutation(M)
    shuffled, probabilities = sampled(given, order)
    assert shuffled.tolist() == ids[order].tolist() and probabilities.tobytes() == logprobs[order].tobytes()


def test_no_noise_is_infinite() -> None:
    # this seed and position hash token 85 to the largest of all numbers
    seed, place, token = Tensor(np.array([19102], np.uint32)), Tensor(np.array([5], np.int32)), 85
    logits = np.zeros((1, 256), np.float32)
    logits[0, token] = -30
    params = np.array([[1, *OFF[1:]]], np.float32)
    assert hashed_uniform(seed, place, 256).numpy()[0, token] == 1 - 2.0**-24
    found, _ = sample(Tensor(logits), SamplingTensors(Tensor(params), seed), place)
    assert found.item() != token


def test_the_first_of_equal_logits_is_taken_by_rows_that_do_not_draw() -> None:
    logits = np.zeros((2, V), np.float32)
    logits[:, [9, 40]] = 2
    params = np.tile(OFF, (2, 1))
    params[:, 0] = 0
    for sampling in (None, SamplingTensors(Tensor(params), Tensor(np.array([1, 2], np.uint32)))):
        ids, _ = sample(Tensor(logits), sampling, Tensor([3, 4]))
        assert ids.tolist() == [9, 9]


def test_rows_are_plain_and_simple_as_far_as_their_settings_go() -> None:
    def rows(**options: Any) -> SamplingRows:
        return SamplingRows(**{"params": np.tile(OFF, (2, 1)), "seed": np.zeros(2, np.uint32)} | options)

    greedy = np.tile(OFF, (2, 1))
    greedy[0, 0], greedy[1, 1] = 0, 1
    mask, table = np.zeros((2, 3), np.uint32), Tensor.zeros(4, V)
    assert rows(params=greedy).plain and not rows().plain and rows().simple
    for options in ({"mask": mask}, {"bias": table}, {"counts": table}):
        assert not rows(params=greedy, **options).plain
    for options in ({"mask": mask}, {"bias": table}, {"drafted": np.zeros((2, 1), np.int32)}):
        assert not rows(**options).simple
    punished = np.tile(OFF, (2, 1))
    punished[1, 4] = 1.5
    both = rows(params=punished, counts=table, mask=mask, drafted=np.array([[1], [2]], np.int32))
    one, other = both.part(np.array([True, False])), both.part(np.array([False, True]))
    assert one.counts is None and one.drafted is None and one.mask is not None and one.mask.shape == (1, 3)
    assert other.counts is table and other.drafted is not None and other.drafted.tolist() == [[2]]
