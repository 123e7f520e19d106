"""Attention of sliding layers in blocks: a query sees keys of its own block of positions and of the one before, so that
scores grow with the length and not with its square.

All of it is movement of what is there: padding, reshaping and slicing.
"""

from __future__ import annotations

from tinygrad import Tensor

WORTH = 3
"""Blocks from which on a row is cut into them; two would be all scores."""


def block_count(length: int, band: int) -> int:
    """Blocks of ``band`` positions that hold a row."""
    return -(-length // band)


def queries_in_blocks(x: Tensor, band: int) -> Tensor:
    """``[B, kv heads, group, T, D]`` as ``[B, kv heads, blocks, group, band, D]``, zeros at the end."""
    batch, groups, each, length, size = x.shape
    count = block_count(length, band)
    padded = x.pad((None, None, None, (0, count * band - length), None))
    # [B, kv heads, group, blocks * band, D] -> [B, kv heads, group, blocks, band, D]
    return padded.reshape(batch, groups, each, count, band, size).permute(0, 1, 3, 2, 4, 5)


def keys_of_blocks(x: Tensor, band: int) -> Tensor:
    """``[B, kv heads, T, D]`` as ``[B, kv heads, blocks, 2 * band, D]``: what each block sees, zeros before the first
    position and behind the last."""
    batch, groups, length, size = x.shape
    count = block_count(length, band)
    padded = x.pad((None, None, (band, count * band - length), None))
    # [B, kv heads, (blocks + 1) * band, D] -> [B, kv heads, blocks + 1, band, D]
    blocks = padded.reshape(batch, groups, count + 1, band, size)
    return blocks[:, :, :-1].cat(blocks[:, :, 1:], dim=3)


def mask_of_blocks(mask: Tensor, band: int) -> Tensor:
    """``[T, T]`` or ``[B, 1, 1, T, T]`` as ``[1 or B, 1, blocks, 1, band, 2 * band]``: each query's keys in its block
    and the one before."""
    length = int(mask.shape[-1])
    count = block_count(length, band)
    rows = mask.reshape(-1, length, length)  # [1 or B, T, T]
    rest = count * band - length
    padded = rows.pad((None, (0, rest), (band, rest)))  # [b, blocks * band, (blocks + 1) * band]
    # a block's keys begin `band` columns farther on than those of the block before; in rows that are `band` longer they
    # stand below each other
    turned = padded.reshape(-1, count, band, (count + 1) * band).permute(0, 2, 1, 3)  # [b, band, blocks, …]
    flat = turned.reshape(-1, band, count * (count + 1) * band).pad((None, None, (0, count * band)))
    found = flat.reshape(-1, band, count, (count + 2) * band)[..., : 2 * band]  # [b, band, blocks, 2 * band]
    # [b, blocks, band, 2 * band] -> [b, 1, blocks, 1, band, 2 * band]
    return found.permute(0, 2, 1, 3).reshape(-1, 1, count, 1, band, 2 * band).contiguous()


def in_a_row(x: Tensor, length: int) -> Tensor:
    """``[B, kv heads, blocks, group, band, D]`` as ``[B, kv heads, group, T, D]``."""
    batch, groups, count, each, band, size = x.shape
    # [B, kv heads, group, blocks, band, D] -> [B, kv heads, group, blocks * band, D]
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, groups, each, count * band, size)[:, :, :, :length]
