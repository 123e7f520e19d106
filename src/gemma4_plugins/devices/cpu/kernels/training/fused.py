"""What training takes from this machine's processor beside products: kernels in C, without gradients of their own."""

from __future__ import annotations

from collections.abc import Sequence

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.fused import Fused
from gemma4_plugins.devices.cpu.kernels.training.launching import HERE, TYPES, Numbers, count, run, served
from gemma4_plugins.devices.cpu.kernels.training.products import scaled_product, scaled_two_products, thin, two_products

FILES = (HERE / "vectors.c",)
MOST_SEEN = 1 << 30
"""Positions and words are counted in 32 bits."""


def made(
    unit: str, numbers: Numbers, out: tuple[tuple[int, ...], DType], inputs: Sequence[Tensor], dtype: DType,
    operations: int,
) -> Tensor | None:
    """The result of a kernel for numbers of a type."""
    name = "_".join(map(str, ("training", unit, *(n for n in numbers if isinstance(n, int)), dtype.name)))
    return run(unit, name, numbers, out, inputs, dtype == dtypes.bfloat16, operations, FILES)


def shape_of(x: Tensor) -> tuple[int, ...]:
    return tuple(map(int, x.shape))


# --------------------------------------------------------------------------------------------------------------- norms


def normed(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor | None, mode: int) -> Tensor | None:
    """A norm (mode 0), the gradient of x (1) or of the weight (2)."""
    if not served(x, weight, dy):
        return None
    width = int(x.shape[-1])
    out = ((width,), dtypes.float32) if mode == 2 else (shape_of(x), x.dtype)
    inputs = [t for t in (x, weight, dy) if t is not None]
    numbers = (count(x.shape[:-1]), width, mode, int(weight is not None), float(eps))
    return made("norm", numbers, out, inputs, x.dtype, 4 * count(x.shape))


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor | None:
    """See ``Fused.rms_norm``."""
    return normed(x, weight, eps, None, 0)


def rms_norm_gradient(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor) -> Tensor | None:
    """See ``Fused.rms_norm_gradient``."""
    return normed(x, weight, eps, dy, 1)


def rms_norm_weight_gradient(x: Tensor, eps: float, dy: Tensor) -> Tensor | None:
    """See ``Fused.rms_norm_weight_gradient``."""
    return normed(x, None, eps, dy, 2)


# ------------------------------------------------------------------------------------------------------------- softmax


def softmax(scores: Tensor, pattern: Pattern, band: int | None, dtype: DType) -> Tensor | None:
    """See ``Fused.softmax``."""
    if scores.dtype != dtypes.float32 or dtype not in TYPES or not served(scores):
        return None
    inputs = [scores, *(t.cast(dtypes.int32) for t in (pattern.segments, pattern.blocks) if t is not None)]
    return weighed(inputs, pattern, band, dtype, 0)


def softmax_gradient(weights: Tensor, slope: Tensor, pattern: Pattern, band: int | None) -> Tensor | None:
    """See ``Fused.softmax_gradient``."""
    return weighed([weights, slope], pattern, band, weights.dtype, 1) if served(weights, slope) else None


def weighed(
    inputs: Sequence[Tensor], pattern: Pattern, band: int | None, dtype: DType, gradient: int
) -> Tensor | None:
    """Attention's weights, or the gradient of its scores."""
    shape = shape_of(inputs[0])
    _, heads, *blocks, group, length, keys = shape
    in_a_text = blocks[0] if blocks else 1
    # behind the end of a row that was cut into blocks nobody looks, unless there are numbers to be looked at
    told = next((t for t in (pattern.segments, pattern.blocks) if t is not None), None)
    end = in_a_text * length if told is None else int(told.shape[1])
    if max(end, keys) >= MOST_SEEN:
        return None
    numbers = (count(shape[:-1]), heads * in_a_text * group * length, keys, end, group, band or 0, in_a_text,
               pattern.window or 0, int(pattern.segments is not None), int(pattern.blocks is not None), gradient)
    return made("softmax", numbers, (shape, dtype), inputs, dtype, 16 * count(shape))


# ------------------------------------------------------------------------------------------------------- cross entropy


def cross_entropy(raw: Tensor, targets: Tensor, cap: float | None) -> Tensor | None:
    """See ``Fused.cross_entropy``."""
    if not served(raw) or int(raw.shape[1]) >= MOST_SEEN:
        return None
    rows, words = shape_of(raw)
    inputs, numbers = (raw, targets.cast(dtypes.int32)), (rows, words, 0, float(cap or 0))
    return made("cross_entropy", numbers, ((rows, 2), dtypes.float32), inputs, raw.dtype, 20 * rows * words)


def cross_entropy_gradient(
    raw: Tensor, targets: Tensor, cap: float | None, losses: Tensor, slopes: Tensor
) -> Tensor | None:
    """See ``Fused.cross_entropy_gradient``."""
    rows, words = shape_of(raw)
    inputs, numbers = (raw, targets.cast(dtypes.int32), losses, slopes), (rows, words, 1, float(cap or 0))
    return made("cross_entropy", numbers, ((rows, words), raw.dtype), inputs, raw.dtype, 30 * rows * words)


# ----------------------------------------------------------------------------------------------------------- gated MLP


def elementwise(tensors: Sequence[Tensor], mode: int) -> Tensor | None:
    """Numbers of tensors of one shape, the first of which is gate: see ``gated.c``."""
    gate = tensors[0]
    if not served(*tensors):
        return None
    numbers, out = (count(gate.shape), mode), (shape_of(gate), gate.dtype)
    return made("gated", numbers, out, tensors, gate.dtype, 20 * count(gate.shape))


def gated(gate: Tensor, up: Tensor) -> Tensor | None:
    """See ``Fused.gated``."""
    return elementwise((gate, up), 0)


def gated_gradients(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor] | None:
    """See ``Fused.gated_gradients``."""
    to_up, to_gate = elementwise((gate, dy), 1), elementwise((gate, dy, up), 2)
    return None if to_up is None or to_gate is None else (to_gate, to_up)


FUSED = Fused(
    two_products=two_products, scaled_product=scaled_product, scaled_two_products=scaled_two_products, thin=thin,
    rms_norm=rms_norm, rms_norm_gradient=rms_norm_gradient,
    rms_norm_weight_gradient=rms_norm_weight_gradient, softmax=softmax, softmax_gradient=softmax_gradient,
    cross_entropy=cross_entropy, cross_entropy_gradient=cross_entropy_gradient,
    gated=gated, gated_gradients=gated_gradients,
)
"""All of them."""
