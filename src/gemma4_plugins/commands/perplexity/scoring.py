"""Scoring a text: negative log-likelihood of each token, and the divergence from another model.

The text is cut into windows of ``context`` positions. A window scores the tokens that no earlier one scored: every
token is scored once, and outside of the first window with at least ``context - stride`` tokens before it. The
model's BOS begins each window, without which Gemma predicts nothing well (as llama.cpp's
perplexity tool does it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.errors import InputError
from gemma4_core.model.ids import check_ids
from gemma4_core.model.media import place
from gemma4_core.ops.graphs import CapturedGraph, upload

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

LOGITS = 1 << 24
"""Logits that are in memory at once, per model: 64 MB."""
ROWS = 64
"""Most positions whose logits are computed at once."""
TOGETHER = 4
"""Windows that run as rows of one call on the portable operations, which gain half as much again by it."""
SUMMANDS = 512
"""Length of the blocks of a sum in fp32; the sums of blocks are added afterwards."""


@dataclass(frozen=True)
class Window:
    """Tokens of one forward pass, of which the last ``scored`` are scored."""

    ids: Sequence[int]
    scored: int


def windows(ids: Sequence[int], context: int, stride: int, bos: int | None) -> Iterator[Window]:
    """Windows over ids that begin with ``bos`` (where there is one); each id but the first is scored once."""
    end = min(context, len(ids))
    yield Window(ids[:end], end - 1)
    step = min(stride, context - 1)
    while end < len(ids):
        done, end = end, min(end + step, len(ids))
        window = list(ids[end - context : end])
        if bos is not None:
            window[0] = bos
        yield Window(window, end - done)


@dataclass
class Scores:
    """Values of the scored positions in order."""

    nll: list[np.ndarray] = field(default_factory=list)
    """Negative log-probability of the token at each position, in nats."""
    other_nll: list[np.ndarray] = field(default_factory=list)
    """The same under the other model."""
    divergence: list[np.ndarray] = field(default_factory=list)
    """KL divergence of the model from the other one: sum of p_other * (log p_other - log p)."""
    agreement: list[np.ndarray] = field(default_factory=list)
    """1 where both models have the same most likely token."""

    def add(self, values: Sequence[np.ndarray]) -> None:
        """Add the values of some positions. Raises InputError where one is not finite."""
        for held, found in zip((self.nll, self.other_nll, self.divergence, self.agreement), values, strict=False):
            if not np.isfinite(found).all():
                raise InputError(f"the logits after {sum(map(len, self.nll))} tokens are not finite: the weights are "
                                 "damaged, or overflow in this dtype; try --dtype float32")
            held.append(found.astype(np.float64))


def score(
    model: LoadedModel, ids: Sequence[int], context: int, stride: int, against: LoadedModel | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> Scores:
    """Score every id but the first, under two models of one vocabulary if another is given.

    Logits are computed for some positions at a time. Raises InputError where they are not finite.
    """
    vocab = model.config.text_config.vocab_size
    models = [model] if against is None else [model, against]
    rows = max(1, min(ROWS, LOGITS // vocab, context))
    graph, scores = CapturedGraph(scorer(models)), Scores()
    every = TOGETHER if any(portable(one) for one in models) else 1
    for window, hidden in with_states(models, windows(ids, context, stride, model.config.bos_token_id), every):
        for first in range(0, window.scored, rows):
            count = min(rows, window.scored - first)
            targets = np.zeros(rows, np.int32)
            at = len(window.ids) - window.scored + first
            targets[:count] = window.ids[at : at + count]
            pairs = zip(models, hidden, strict=True)
            parts = [padded_rows(one, part[first : first + count], rows) for one, part in pairs]
            wanted = upload(targets, model.device)
            scores.add([found.numpy()[:count] for found in graph(wanted, *parts)])
            advance(count)
    return scores


def portable(model: LoadedModel) -> bool:
    """Whether it runs on the portable operations. A device's own kernels take a chunk of one row at a time."""
    return model.operations.step is None and model.operations.layers is None


def with_states(
    models: Sequence[LoadedModel], found: Iterable[Window], together: int
) -> Iterator[tuple[Window, Sequence[np.ndarray]]]:
    """Each window with each model's ``last_rows``; so many windows of one length run in one call."""
    for _, alike in groupby(found, key=lambda window: len(window.ids)):
        while group := list(islice(alike, together)):
            yield from zip(group, zip(*(last_rows(one, group) for one in models), strict=True), strict=True)


def last_rows(model: LoadedModel, group: Sequence[Window]) -> list[np.ndarray]:
    """For each of some windows of one length final hidden states fp32 ``[scored, H]`` of the positions that predict its
    scored ids."""
    ids, cache = [list(window.ids) for window in group], model.make_cache()
    placed = place(model, check_ids(ids, model.config.text_config.vocab_size), {})
    hidden: np.ndarray = model.engine.hidden_states(cache, placed)[0]
    last = len(ids[0]) - 1
    return [states[last - window.scored : last] for states, window in zip(hidden, group, strict=True)]


def padded_rows(model: LoadedModel, rows: np.ndarray, count: int) -> Tensor:
    """Rows ``[n, H]`` on the device in the model's dtype, ``[count, H]`` with zeros below."""
    padded = np.zeros((count, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return upload(padded, model.device, model.dtype)


def scorer(models: Sequence[LoadedModel]) -> Callable[..., tuple[Tensor, ...]]:
    """A function of targets ``[n]`` and each model's hidden states ``[n, H]``: negative log-probabilities ``[n]`` of
    each, and of two models also the divergence and the agreement."""

    def run(targets: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        logits = [one.text.logits(h, one.operations).contiguous() for one, h in zip(models, hidden, strict=True)]
        log_p = [x - log_sum_exp(x) for x in logits]
        here = Tensor.arange(int(logits[0].shape[-1])).reshape(1, -1) == targets.reshape(-1, 1)
        found = [-here.where(x, 0.0).sum(-1) for x in log_p]
        if len(models) == 2:
            mine, other = log_p
            found.append(blocked_sum(other.exp() * (other - mine)))
            found.append((logits[0].argmax(-1) == logits[1].argmax(-1)).cast(dtypes.float32))
        found = [x.contiguous() for x in found]
        found[0].realize(*found[1:])
        return tuple(found)

    return run


def blocked_sum(x: Tensor) -> Tensor:
    """Sum over the last axis of ``x [n, V]`` in two steps: fp32 sums of a quarter of a million numbers drift."""
    rows, size = (int(n) for n in x.shape)
    block = math.gcd(size, SUMMANDS)
    return x.reshape(rows, size // block, block).sum(-1).contiguous().sum(-1)  # [n, V] -> [n, V / block, block]


def log_sum_exp(x: Tensor) -> Tensor:
    """``[n, V]`` to ``[n, 1]``."""
    top = x.max(-1, keepdim=True).contiguous()
    return (blocked_sum((x - top).exp()).reshape(-1, 1).log() + top).contiguous()


# ---------------------------------------------------------------------------------------------------- figures


def mean_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(values.mean()), error


def figures(scores: Scores) -> dict[str, Any]:
    """Mean negative log-likelihood in nats and perplexity with standard errors; of two models also how they differ."""
    nll = np.concatenate(scores.nll)
    mean, error = mean_error(nll)
    found: dict[str, Any] = {"scored": len(nll), **perplexity("", mean, error)}
    if scores.divergence:
        divergence, agreement = np.concatenate(scores.divergence), np.concatenate(scores.agreement)
        other = np.concatenate(scores.other_nll)
        change, change_error = mean_error(nll - other)
        kl, kl_error = mean_error(divergence)
        same, same_error = mean_error(agreement)
        found |= perplexity("against_", *mean_error(other)) | {
            "nll_change": change, "nll_change_error": change_error,
            "kl_divergence": kl, "kl_divergence_error": kl_error, "kl_divergence_median": float(np.median(divergence)),
            "kl_divergence_99": float(np.quantile(divergence, 0.99)), "kl_divergence_max": float(divergence.max()),
            "top1_agreement": same, "top1_agreement_error": same_error,
        }  # fmt: skip
    return found


def perplexity(prefix: str, mean: float, error: float) -> dict[str, float]:
    """exp of the mean, its error by the slope of exp there."""
    value = math.exp(min(mean, 700.0))
    names = ("mean_nll", "mean_nll_error", "perplexity", "perplexity_error")
    return {prefix + name: number for name, number in zip(names, (mean, error, value, value * error), strict=True)}
