"""Choosing the next token of each row inside a captured graph: the largest logit, or temperature, top-k, top-p, min-p,
penalties, biases and a mask of allowed ids.

Noise comes from a hash of (seed, position, token), so that a seed gives the same tokens on every device, however the
prompt was split, whatever else draws random numbers, and in whatever company a row runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, dtypes

EXCLUDED = -1e30
ROUNDS = 32
"""Bisection over the 32 bits of a float finds a threshold exactly."""
IN_PROMPT = 1 << 30
"""What ``counts`` has added where the prompt holds an id."""


@dataclass(frozen=True)
class SamplingTensors:
    """What a sampling graph of M rows reads; all may change between replays. See ``SamplingRows``."""

    params: Tensor
    """fp32 ``[M, 7]``."""
    seed: Tensor
    """uint32 ``[M]``."""
    counts: Tensor | None = None
    """int32 ``[M, V]``, each row its slot's."""
    bias: Tensor | None = None
    """fp32 ``[M, V]``, each row its slot's."""
    mask: Tensor | None = None
    """uint32 ``[M, ceil(V / 32)]``."""
    drafted: Tensor | None = None
    """int32 ``[M, k]``."""
    cuts: bool = True
    """Whether any row has top-k, top-p or min-p."""


def mix(h: Tensor) -> Tensor:
    """uint32 of which every bit depends on every bit of uint32 ``h``: MurmurHash3's finaliser (fmix32)."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


def hashed_uniform(seed: Tensor, position: Tensor, size: int) -> Tensor:
    """Numbers in (0, 1), fp32 ``[M, size]``, by two rounds of an integer finaliser of uint32 ``seed [M]`` and int32
    ``position [M]``."""
    start = mix(seed + position.cast(dtypes.uint32) * 0x9E3779B1).unsqueeze(1)  # [M, 1]
    index = Tensor.arange(size).cast(dtypes.uint32).unsqueeze(0)
    bits = mix(mix(index * 0x9E3779B1 + start) + start)
    # the largest would be rounded to 1, and its noise be infinite: that token would be drawn whatever its logit
    return (((bits >> 8).cast(dtypes.float32) + 0.5) * (1.0 / (1 << 24))).minimum(1.0 - 2.0**-24)


def _ordered(x: Tensor) -> Tensor:
    """fp32 as uint32 whose order is that of the floats."""
    bits = x.bitcast(dtypes.uint32)
    return (bits >> 31 != 0).where(bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


def _threshold(keys: Tensor, enough: Tensor, weight: Tensor) -> Tensor:
    """The largest key t of each row, uint32 ``[M, 1]``, for which the weights of keys >= t still sum to ``enough``."""
    found = Tensor.zeros(int(keys.shape[0]), 1, dtype=dtypes.uint32, device=keys.device)
    for bit in reversed(range(ROUNDS)):
        trial = (found + (1 << bit)).contiguous()
        reached = (keys >= trial).where(weight, 0.0).sum(-1, keepdim=True) >= enough
        found = reached.where(trial, found).contiguous()
    return found


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first largest logit of ``[M, V]``: ids int32 ``[M]`` and their log-probability fp32 ``[M]``."""
    token = logits.argmax(-1).cast(dtypes.int32)
    # a kernel whose argument is simplified away is launched wrongly by tinygrad 0.14's CUDA graph, so max() stays apart
    top = logits.max(-1, keepdim=True).contiguous()
    return token, -(logits - top).exp().sum(-1).log()


def sample(logits: Tensor, sampling: SamplingTensors | None, position: Tensor) -> tuple[Tensor, Tensor]:
    """Choose tokens for int32 ``position [M]`` from fp32 ``logits [M, V]``: ids int32 ``[M]``, log-probabilities fp32
    ``[M]``.

    Without ``sampling`` every row takes its largest logit. The log-probability is the model's own, before everything
    else. Biases come first, then penalties, the mask, and the cuts in the order of transformers 5.23.0: temperature,
    top-k, top-p, min-p.
    """
    if sampling is None:
        return greedy(logits)
    temperature, top_k, top_p, min_p, *penalties = (sampling.params[:, i : i + 1] for i in range(7))
    scores = logits if sampling.bias is None else logits + sampling.bias
    if sampling.counts is not None:
        scores = punished(scores, sampling.counts, sampling.drafted, penalties)
    if sampling.mask is not None:
        scores = allowed(sampling.mask, int(logits.shape[-1])).where(scores, EXCLUDED)
    scaled = (scores / (temperature > 0).where(temperature, 1.0)).contiguous()
    noise = -(-hashed_uniform(sampling.seed, position, int(logits.shape[-1])).log()).log()
    drawn = (temperature > 0).where(scaled + noise, scores)
    if sampling.cuts:
        drawn = cut(scaled, top_k, top_p, min_p).where(drawn, EXCLUDED)
    token = drawn.argmax(-1, keepdim=True).cast(dtypes.int32)
    vocabulary = Tensor.arange(int(logits.shape[-1])).reshape(1, -1)
    chosen = (vocabulary == token).where(logits, 0.0).sum(-1)
    return token.squeeze(1), chosen - logits.logsumexp(-1)


def punished(scores: Tensor, counts: Tensor, drafted: Tensor | None, penalties: list[Tensor]) -> Tensor:
    """Scores ``[M, V]`` after the repetition penalty (of transformers: on all that occurred) and the presence and
    frequency penalties (of OpenAI's API: on what was generated), each ``[M, 1]``."""
    repetition, presence, frequency = penalties
    if drafted is not None:
        vocabulary = Tensor.arange(int(scores.shape[-1]), dtype=dtypes.int32).reshape(1, 1, -1)
        counts = counts + (drafted.unsqueeze(2) == vocabulary).sum(1, dtype=dtypes.int32)
    generated = (counts >= IN_PROMPT).where(counts - IN_PROMPT, counts)
    repeated = (scores > 0).where(scores / repetition, scores * repetition)
    scores = (counts > 0).where(repeated, scores)
    return scores - (generated > 0).where(presence, 0.0) - generated.cast(dtypes.float32) * frequency


def allowed(mask: Tensor, vocabulary: int) -> Tensor:
    """uint32 ``[M, words]`` as bool ``[M, V]``."""
    rows, words = (int(n) for n in mask.shape)
    bits = mask.unsqueeze(2) >> Tensor.arange(32).cast(dtypes.uint32).reshape(1, 1, 32)  # [M, words, 32]
    return (bits & 1 != 0).reshape(rows, words * 32)[:, :vocabulary]


def cut(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """bool ``[M, V]``: what top-k, top-p and min-p leave of scores that the temperature has divided."""
    keys = _ordered(scaled).contiguous()
    keep = (top_k <= 0).where(True, keys >= _threshold(keys, top_k, Tensor.ones_like(scaled)))
    share = keep.where(scaled, EXCLUDED).softmax(-1).contiguous()
    keep = keep & (top_p >= 1).where(True, keys >= _threshold(keys, top_p, share))
    return keep & (share >= share.max(-1, keepdim=True) * min_p)
