"""Writing new positions into the slots of a cache, where slots and positions are numbers in memory."""

from __future__ import annotations

from tinygrad import Tensor, UOp
from tinygrad.uop.ops import KernelInfo


def write_positions(held: Tensor, new: Tensor, slot: Tensor, start: Tensor, valid: Tensor) -> Tensor:
    """``held [S, 2, kv heads, P, D]`` with the first ``valid [B]`` of T positions of ``new [B, 2, kv heads, T, D]``
    written in place from ``start [B]`` on, modulo P, into slots ``slot [B]``; int32 numbers. A single position of a
    single sequence is written whether valid or not."""
    return held.custom_kernel(new, slot, start, valid, fxn=_writes)[0]


def _writes(held: UOp, new: UOp, slot: UOp, start: UOp, valid: UOp) -> UOp:
    _, kinds, heads, places, size = (int(n) for n in held.shape)
    rows, length = int(new.shape[0]), int(new.shape[3])
    b, k, h, t, d = (UOp.range(n, i) for i, n in enumerate((rows, kinds, heads, length, size)))
    place = (start[b] + t) % places
    target = (((slot[b] * kinds + k) * heads + h) * places + place) * size + d
    source = (((b * kinds + k) * heads + h) * length + t) * size + d
    store = held.flatten()[target.valid(t < valid[b])].store(new.flatten()[source])
    return store.end(b, k, h, t, d).sink(arg=KernelInfo(name=f"write_positions_{rows}_{length}"))


def count_tokens(counts: Tensor, slot: Tensor, token: Tensor, valid: Tensor) -> Tensor:
    """``counts [S, V]`` with ``valid [M]`` (0 or 1) more in place at ``token [M]`` of slot ``slot [M]``; int32 numbers.
    Rows of one slot may be several."""
    return counts.custom_kernel(slot, token.contiguous(), valid, fxn=_counts)[0]


def _counts(counts: UOp, slot: UOp, token: UOp, valid: UOp) -> UOp:
    vocabulary = int(counts.shape[1])
    m = UOp.range(int(slot.shape[0]), 0)
    flat = counts.flatten()
    # added rather than gated: tinygrad drops the gate of a single row, and with it the argument that CUDA counts on
    place = slot[m] * vocabulary + token[m]
    store = flat[place].store(flat[place] + valid[m])
    return store.end(m).sink(arg=KernelInfo(name=f"count_tokens_{int(slot.shape[0])}", opts_to_apply=()))
