"""The operations seam: the handful of named operations that the decoder is written against.

``Operations`` is a table of functions. ``portable()`` gives the tinygrad form of each, which runs on every backend and
is the oracle for every faster one. A device plugin returns ``dataclasses.replace(portable(), linear=mine, …)``; a
replacement that cannot serve a call (another weight format, an odd shape) passes it on to the portable form.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinygrad import Tensor, UOp

from gemma4_core.ops import portable as _portable
from gemma4_core.ops import sampling as _sampling

if TYPE_CHECKING:
    from gemma4_core.generation.engine import ChunkStep, DecodeStep, Engine
    from gemma4_core.model.cache import Storage
    from gemma4_core.model.decoder import Inputs, TextDecoder
    from gemma4_core.model.layers import Rotation
    from gemma4_core.ops.attention import KeyValues
    from gemma4_core.weights import ExpertStack, Matrix

LAYER_KERNELS = "layer_"
"""What names of kernels begin with that ``Operations.layers`` launches for each layer, so that they are counted."""


@dataclass(frozen=True)
class Operations:
    """One function per operation. B rows, T positions, H hidden, D head size, V vocabulary."""

    name: str
    linear: Callable[[Tensor, Matrix], Tensor]
    """``x [..., in]``, matrix ``[out, in]``: ``[..., out]`` in x's dtype, accumulated in fp32."""
    rms_norm: Callable[[Tensor, Tensor | None, float], Tensor]
    """``x [..., n]`` normalised over n in fp32, times the weight ``[n]`` if any, in x's dtype."""
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``x [B, T, heads, D]``, cos and sin ``[T, D/2]``: rotate-half, in x's dtype."""
    attention: Callable[[Tensor, KeyValues], Tensor]
    """``q [B, T, heads, D]`` against keys and values: ``[B, T, heads, D]``; scale 1, softmax in fp32."""
    gated_mlp: Callable[[Tensor, Matrix, Matrix, Matrix], Tensor]
    """``down(gelu_tanh(gate(x)) * up(x))``."""
    experts: Callable[[Tensor, Tensor, Tensor, ExpertStack, ExpertStack], Tensor]
    """``x [n, H]``, chosen experts ``[n, k]``, their weights ``[n, k]`` fp32, gate_up and down stacks: ``[n, H]``."""
    logits: Callable[[Tensor, Matrix, float | None], Tensor]
    """``h [..., H]`` times the tied head, soft-capped: fp32 ``[..., V]``."""
    sample: Callable[..., tuple[Tensor, Tensor]]
    """See ``gemma4_core.ops.sampling.sample``: token ids and log-probabilities."""
    matmul: Callable[[Tensor, Tensor, str, bool], Tensor | None] | None = None
    """Products for training: ``a @ b.T`` (form "nt"), ``a @ b`` ("nn") or ``a.T @ b`` ("tn") of the last two axes, in
    a's dtype, or in fp32 where the flag says so, accumulated in fp32. Where ``a`` holds more matrices than ``b``, each
    of b's serves as many in a row. Not differentiable itself. None for what it does not serve."""
    prefill_chunk: int = 32
    """Positions per prefill chunk that suits this device."""
    decode_step: Callable[[Engine, Storage, bool], DecodeStep | None] | None = None
    """A whole decode step taken over by the device; None, or a result of None, means operation by operation."""
    layers: Callable[[TextDecoder, Inputs, Sequence[Tensor | None], Rotation, UOp], Tensor | None] | None = None
    """All layers and the final norm for one position, inside the graph of a decode step: the decoder, what the layers
    start from, the cache's buffers (which get the position's keys and values), the rotary tables of all positions and
    the position, bound: ``[1, 1, H]``. None, or a result of None, means layer by layer."""
    run_ahead: int = 0
    """The most steps that such a decode step lets the host queue before the first of them is read."""
    prefill: Callable[[Engine, Storage], ChunkStep | None] | None = None
    """Chunks of a prompt taken over likewise. It may be asked for each chunk: keep what is made per storage."""
    prefill_both_ways: int = 0
    """The longest chunk that it takes in which tokens of a media block see those behind them."""


def kernels_wanted() -> bool:
    """Whether devices may bring their own operations: ``GEMMA4_KERNELS=portable`` says no."""
    return os.environ.get("GEMMA4_KERNELS", "").strip().lower() != "portable"


def portable() -> Operations:
    """The portable table."""
    return Operations(
        name="portable",
        linear=_portable.linear,
        rms_norm=_portable.rms_norm,
        rope=_portable.rope,
        attention=_portable.attention,
        gated_mlp=_portable.gated_mlp,
        experts=_portable.experts,
        logits=_portable.logits,
        sample=_sampling.sample,
    )
