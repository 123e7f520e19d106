"""A token's work as kernels written in UOps, for every GPU that tinygrad renders for. See docs/performance.md."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_core.ops import Operations

PREFILL_CHUNK = 128
"""Positions of a prompt that go through the portable graph together. On an H200 a chunk of 128 takes little longer than
one of 32, and padding a short prompt to 512 would take three times as long."""


def operations() -> Operations:
    """The portable operations, some replaced by these kernels; ``GEMMA4_KERNELS=portable`` turns the kernels off."""
    from gemma4_core.ops import kernels_wanted, portable

    if not kernels_wanted():
        return portable()
    from gemma4_plugins.devices.uops.layers import token_layers
    from gemma4_plugins.devices.uops.single import gated_mlp, linear, logits

    return replace(
        portable(), name="uops", linear=linear, gated_mlp=gated_mlp, logits=logits, layers=token_layers,
        kernels=(linear, gated_mlp, logits),
        prefill_chunk=PREFILL_CHUNK, graph_chunk=PREFILL_CHUNK, shared_chunk=PREFILL_CHUNK,
    )  # fmt: skip
