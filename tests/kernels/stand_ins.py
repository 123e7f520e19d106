"""A device's kernels for training, which tinygrad plays: contracts kept, nothing fast."""

from __future__ import annotations

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.model.spans import visible
from gemma4_core.ops import portable
from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.fused import Fused
from gemma4_core.ops.multiply import made
from gemma4_core.ops.portable import capped, cross_entropy, gelu_tanh
from gemma4_core.ops.sliding_blocks import mask_of_blocks

calls: list[str] = []
"""The products that were asked for."""


def matmul(a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor:
    calls.append(form)
    return made(None, a, b, form, wide).contiguous()


def two_products(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, form: str) -> Tensor | None:
    calls.append(f"two {form}")
    assert a2.shape[1] % 16 == 0
    total = made(None, a, b, form, True) + made(None, a2, b2, form, True)
    return total.cast(a.dtype).contiguous()


def scaled_product(a: Tensor, numbers: Tensor, scale: Tensor, form: str) -> Tensor:
    calls.append(f"packed {form}")
    return made(None, a, (numbers.float() * scale.unsqueeze(1)).cast(a.dtype), form).contiguous()


def scaled_two_products(a: Tensor, numbers: Tensor, scale: Tensor, a2: Tensor, b2: Tensor, form: str) -> Tensor | None:
    calls.append(f"packed two {form}")
    return two_products(a, (numbers.float() * scale.unsqueeze(1)).cast(a.dtype), a2, b2, form)


def thin(x: Tensor, a: Tensor, factor: float, form: str) -> Tensor | None:
    calls.append(f"thin {form}")
    return (made(None, x, a, form, True) * factor).cast(x.dtype).contiguous()


def root(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def norm_gradient(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor) -> Tensor:
    r, d = root(x, eps), dy if weight is None else dy * weight
    return (r * (d - x * (d * x).mean(-1, keepdim=True) * r * r)).contiguous()


def norm_weight_gradient(x: Tensor, eps: float, dy: Tensor) -> Tensor:
    return (dy * x * root(x, eps)).reshape(-1, x.shape[-1]).sum(0)


NORMS = Fused(
    rms_norm=lambda x, weight, eps: portable().rms_norm(x, weight, eps).contiguous() if x.shape[-1] % 8 == 0 else None,
    rms_norm_gradient=norm_gradient, rms_norm_weight_gradient=norm_weight_gradient,
)  # fmt: skip


def seen_by(pattern: Pattern, length: int) -> Tensor:
    """The mask that a pattern describes: bool ``[B or 1, T, T]``."""
    positions = Tensor.arange(length)
    mask = visible(positions, positions, pattern.window, pattern.blocks, pattern.blocks).reshape(-1, length, length)
    if pattern.segments is not None:
        mask = mask & (pattern.segments.unsqueeze(2) == pattern.segments.unsqueeze(1))
    return mask


def weights_of(scores: Tensor, pattern: Pattern, band: int | None, dtype: DType) -> Tensor:
    """Stands in for a device's softmax."""
    taken.append(band)
    whole = scores.shape[2] * scores.shape[4] if band is not None else scores.shape[-2]
    length = int(whole) if pattern.segments is None else int(pattern.segments.shape[1])
    if band is None:
        mask = seen_by(pattern, length).unsqueeze(1).unsqueeze(1)
    else:
        mask = mask_of_blocks(seen_by(pattern, length).unsqueeze(1).unsqueeze(1), band)
    return mask.where(scores, -1e30).softmax(-1).cast(dtype).contiguous()


def scores_gradient(weights: Tensor, slope: Tensor, pattern: Pattern, band: int | None) -> Tensor:
    return (weights * (slope - (weights * slope).sum(-1, keepdim=True))).contiguous()


taken: list[int | None] = []


def row_losses(raw: Tensor, targets: Tensor, cap: float | None) -> Tensor | None:
    """Stands in for a device's losses."""
    if raw.shape[1] % 8:
        return None
    logits = capped(raw, cap)
    return cross_entropy(logits, targets).stack(logits.logsumexp(-1), dim=1).contiguous()


def logits_gradient(raw: Tensor, targets: Tensor, cap: float | None, losses: Tensor, slopes: Tensor) -> Tensor:
    here = Tensor.arange(int(raw.shape[1])).unsqueeze(0) == targets.unsqueeze(1)
    logits = capped(raw, cap)
    bent = 0.0 if cap is None else (logits / cap).square()
    slope = ((logits - losses[:, 1:]).exp() - here.cast(dtypes.float32)) * (1 - bent)
    return ((targets >= 0).unsqueeze(1).where(slope, 0.0) * slopes.unsqueeze(1)).contiguous()


def gated_gradients(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    bent = (0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)).tanh().contiguous()
    inner = 0.7978845608028654 * (1 + 3 * 0.044715 * gate * gate)
    slope = 0.5 * (1 + bent) + 0.5 * gate * (1 - bent * bent) * inner
    return (dy * up * slope).contiguous(), (dy * 0.5 * gate * (1 + bent)).contiguous()


GATED = Fused(gated=lambda gate, up: (gelu_tanh(gate) * up).contiguous(), gated_gradients=gated_gradients)
SOFTMAX = Fused(softmax=weights_of, softmax_gradient=scores_gradient)
LOSSES = Fused(cross_entropy=row_losses, cross_entropy_gradient=logits_gradient)
ADAPTED = Fused(two_products=two_products, thin=thin)
EVERY = Fused(**{
    name: kernel for some in (ADAPTED, NORMS, SOFTMAX, LOSSES, GATED) for name, kernel in vars(some).items() if kernel
})
