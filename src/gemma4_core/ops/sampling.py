"""Choosing the next token inside the captured graph: greedy, or temperature, top-k, top-p, min-p and a penalty.

Noise comes from a hash of (seed, position, token), so that a seed gives the same tokens on every device, however the
prompt was split, and whatever else draws random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp, dtypes

EXCLUDED = -1e30
ROUNDS = 32
"""Bisection over the 32 bits of a float finds a threshold exactly."""


@dataclass(frozen=True)
class SamplingState:
    """Device tensors that parametrise a sampling graph; all may change between replays.

    ``params`` is fp32 ``[5]``: temperature (0 is greedy), top-k (0 is off), top-p (1 is off), min-p (0 is off),
    repetition penalty (1 is off). ``seed`` is uint32 ``[1]``. ``seen`` is bool ``[1, V]``: tokens that occurred.
    """

    params: Tensor
    seed: Tensor
    seen: Tensor


def mix(h: Tensor) -> Tensor:
    """uint32 of which every bit depends on every bit of uint32 ``h``: MurmurHash3's finaliser (fmix32)."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


def hashed_uniform(seed: Tensor, position: int | UOp, size: int) -> Tensor:
    """Numbers in (0, 1), fp32 ``[1, size]``, by two rounds of an integer finaliser."""
    start = mix(
        seed + (Tensor.zeros(1, dtype=dtypes.int32, device=seed.device) + position).cast(dtypes.uint32) * 0x9E3779B1
    )
    index = Tensor.arange(size).cast(dtypes.uint32).reshape(1, size)
    bits = mix(mix(index * 0x9E3779B1 + start) + start)
    return ((bits >> 8).cast(dtypes.float32) + 0.5) * (1.0 / (1 << 24))


def _ordered(x: Tensor) -> Tensor:
    """fp32 as uint32 whose order is that of the floats."""
    bits = x.bitcast(dtypes.uint32)
    return (bits >> 31 != 0).where(bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


def _threshold(keys: Tensor, enough: Tensor, weight: Tensor) -> Tensor:
    """The largest key t, uint32 ``[1, 1]``, for which the weights of keys >= t still sum to ``enough``."""
    found = Tensor.zeros(1, 1, dtype=dtypes.uint32, device=keys.device)
    for bit in reversed(range(ROUNDS)):
        trial = (found + (1 << bit)).contiguous()
        reached = (keys >= trial).where(weight, 0.0).sum(-1, keepdim=True) >= enough
        found = reached.where(trial, found).contiguous()
    return found


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first largest logit of ``[B, V]``: ids int32 ``[B, 1]`` and their log-probability fp32 ``[B, 1]``."""
    token = logits.argmax(-1, keepdim=True).cast(dtypes.int32)
    # a kernel whose argument is simplified away is launched wrongly by tinygrad 0.14's CUDA graph, so max() stays apart
    top = logits.max(-1, keepdim=True).contiguous()
    return token, -(logits - top).exp().sum(-1, keepdim=True).log()


def sample(logits: Tensor, state: SamplingState | None, position: int | UOp) -> tuple[Tensor, Tensor]:
    """Choose a token from fp32 ``logits [1, V]``: ids int32 ``[1, 1]``, log-probabilities fp32 ``[1, 1]``.

    Without a state the choice is greedy and rows may be several. The log-probability is the model's own, before
    penalty, temperature and cuts. Cuts apply in the order of transformers 5.23.0: penalty, temperature, top-k,
    top-p, min-p.
    """
    if state is None:
        return greedy(logits)
    temperature, top_k, top_p, min_p, penalty = (state.params[i].reshape(1, 1) for i in range(5))
    punished = (logits > 0).where(logits / penalty, logits * penalty)
    scores = state.seen.where(punished, logits)
    scaled = (scores / (temperature > 0).where(temperature, 1.0)).contiguous()
    keys = _ordered(scaled).contiguous()
    ones = Tensor.ones_like(scaled)
    keep = (top_k <= 0).where(True, keys >= _threshold(keys, top_k, ones))
    cut = keep.where(scaled, EXCLUDED)
    share = cut.softmax(-1).contiguous()
    keep = keep & (top_p >= 1).where(True, keys >= _threshold(keys, top_p, share))
    keep = keep & (share >= share.max(-1, keepdim=True) * min_p)
    noise = -(-hashed_uniform(state.seed, position, int(logits.shape[-1])).log()).log()
    drawn = keep.where((temperature > 0).where(scaled + noise, scores), EXCLUDED)
    token = drawn.argmax(-1, keepdim=True).cast(dtypes.int32)
    vocabulary = Tensor.arange(int(logits.shape[-1])).reshape(1, -1)
    chosen = (vocabulary == token).where(logits, 0.0).sum(-1, keepdim=True)
    return token, chosen - logits.logsumexp(-1, keepdim=True)
