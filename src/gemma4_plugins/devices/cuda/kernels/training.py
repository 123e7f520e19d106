"""What training takes from an NVIDIA GPU beside products: kernels in source form, without gradients of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.fused import Fused
from gemma4_plugins.devices.cuda.kernels.matmul import target_of, two_products, usable
from gemma4_plugins.devices.cuda.kernels.sources import device_source, source_of
from gemma4_plugins.devices.cuda.kernels.tiles import FULL_CARD
from gemma4_plugins.devices.source_kernels import launch

MOST_COLUMNS = 64
"""Of a thin product: a block holds 16 rows of it in fp32 for each of its warps, in 48 KB."""

NORM_ROWS = 16
"""Whose shares in a weight's gradient a block adds up."""
MOST_NORMED = 8192
"""Numbers in a row that is normalised: a thread holds 32 of each of two such rows."""

MOST_KEYS = 1 << 14
"""That a query's weights are made of: a thread holds 16 of each of two rows."""

LOSS_THREADS = 512
GATED_THREADS = 256


def launched(
    kernel: tuple[str, str], out: tuple[tuple[int, ...], DType], inputs: Sequence[Tensor], blocks: int, threads: int
) -> Tensor:
    """A kernel's output."""
    name, source = kernel
    target = target_of(str(inputs[0].device))
    return launch(name, device_source(source), out, inputs, target, (blocks, 1, 1), (threads, 1, 1))


def fast(*tensors: Tensor | None) -> bool:
    """Whether these are bf16 tensors on a GPU that the kernels were written for."""
    given = [t for t in tensors if t is not None]
    return all(t.dtype == dtypes.bfloat16 for t in given) and usable(str(given[0].device))


def thin_kernel(m: int, k: int, r: int, factor: float, down: bool) -> tuple[str, str]:
    """Name and source of a thin product."""
    values = {"M": m, "K": k, "R": r, "FACTOR": float(factor), "DOWN": int(down), "WARPS": thin_warps(k, r)}
    return source_of("thin", values)


def thin_warps(k: int, r: int) -> int:
    """Warps that share K."""
    return 16 if r <= 32 and k >= 1024 else 8


def thin(x: Tensor, a: Tensor, factor: float, form: str) -> Tensor | None:
    """See ``Fused.thin``."""
    m, k, r = int(x.shape[0]), int(x.shape[1]), int(a.shape[1 if form == "nn" else 0])
    if not fast(x, a) or k % 32 or r % 16 or not 0 < r <= MOST_COLUMNS:
        return None
    kernel = thin_kernel(m, k, r, factor, form == "nn")
    return launched(kernel, ((m, r), x.dtype), (x, a), -(-m // 16), 32 * thin_warps(k, r))


# --------------------------------------------------------------------------------------------------------------- norms


def norm_kernel(m: int, n: int, eps: float, mode: int, weighted: bool) -> tuple[str, str]:
    """Name and source of a norm (mode 0), of its gradient (1), and of its weight's (2)."""
    values: dict[str, int | float] = {"M": m, "N": n, "EPS": float(eps), "MODE": mode, "WEIGHTED": int(weighted)}
    name, source = source_of("norm", values | {"TEAM": norm_team(n, mode), "ROWS": NORM_ROWS})
    return name, f"#define OUT {'float' if mode == 2 else 'u16'}\n" + source


def norm_team(n: int, mode: int) -> int:
    """Threads that make a row."""
    if n <= 512 and mode != 2:
        return 32
    return 128 if n <= 2048 else 256


def normed(x: Tensor, inputs: Sequence[Tensor], eps: float, mode: int, weighted: bool) -> Tensor | None:
    """A norm's kernel over ``x [..., n]``."""
    n = int(x.shape[-1])
    m = math.prod(int(size) for size in x.shape[:-1])
    if not fast(x, *inputs) or n % 8 or not 0 < n <= MOST_NORMED or not m:
        return None
    team, blocks = norm_team(n, mode), -(-m // NORM_ROWS)
    kernel, threads = norm_kernel(m, n, eps, mode, weighted), max(team, 128)
    if mode == 2:
        return launched(kernel, ((blocks, n), dtypes.float32), (x, *inputs), blocks, threads).sum(0)
    return launched(kernel, (tuple(map(int, x.shape)), x.dtype), (x, *inputs), -(-m * team // threads), threads)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor | None:
    """See ``Fused.rms_norm``."""
    return normed(x, () if weight is None else (weight,), eps, 0, weight is not None)


def rms_norm_gradient(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor) -> Tensor | None:
    """See ``Fused.rms_norm_gradient``."""
    return normed(x, (dy,) if weight is None else (weight, dy), eps, 1, weight is not None)


def rms_norm_weight_gradient(x: Tensor, eps: float, dy: Tensor) -> Tensor | None:
    """See ``Fused.rms_norm_weight_gradient``."""
    return normed(x, (dy,), eps, 2, False)


# ------------------------------------------------------------------------------------------------------------- softmax


def softmax_kernel(shape: Sequence[int], pattern: Pattern, band: int | None, gradient: bool) -> tuple[str, str]:
    """Name and source of attention's weights, or of the gradient of its scores, both of this shape."""
    batch, heads, *blocks, group, length, keys = shape
    count = blocks[0] if blocks else 1
    # behind the end of a row that was cut into blocks nobody looks, unless there are numbers to be looked at
    end = count * length if pattern.segments is None else int(pattern.segments.shape[1])
    return source_of("softmax", {
        "BATCH": batch, "ROWS": heads * count * group * length, "S": keys, "T": end, "GROUP": group, "BAND": band or 0,
        "BLOCKS": count, "WINDOW": pattern.window or 0, "SEGMENTS": int(pattern.segments is not None),
        "MEDIA": int(pattern.blocks is not None), "GRADIENT": int(gradient), "VECTOR": 1 if keys % 4 else 4,
        "THREADS": softmax_threads(keys),
    })


def softmax_threads(keys: int) -> int:
    """Threads that make a row: 16 numbers each, or fewer."""
    return next(threads for threads in (128, 256, 512, 1024) if 16 * threads >= keys)


def softmax(scores: Tensor, pattern: Pattern, band: int | None, dtype: DType) -> Tensor | None:
    """See ``Fused.softmax``."""
    shape = tuple(map(int, scores.shape))
    if dtype != dtypes.bfloat16 or scores.dtype != dtypes.float32 or not usable(str(scores.device)):
        return None
    if not 0 < shape[-1] <= MOST_KEYS or not all(shape):
        return None
    inputs = [t.cast(dtypes.int32) for t in (pattern.segments, pattern.blocks) if t is not None]
    kernel = softmax_kernel(shape, pattern, band, False)
    return launched(kernel, (shape, dtype), (scores, *inputs), math.prod(shape[:-1]), softmax_threads(shape[-1]))


def softmax_gradient(weights: Tensor, slope: Tensor, pattern: Pattern, band: int | None) -> Tensor:
    """See ``Fused.softmax_gradient``."""
    shape = tuple(map(int, weights.shape))
    kernel = softmax_kernel(shape, pattern, band, True)
    inputs, blocks = (weights, slope), math.prod(shape[:-1])
    return launched(kernel, (shape, weights.dtype), inputs, blocks, softmax_threads(shape[-1]))


# ------------------------------------------------------------------------------------------------------- cross entropy


def cross_entropy_kernel(n: int, v: int, cap: float | None, gradient: bool) -> tuple[str, str]:
    """Name and source of losses, or of the gradient of raw logits."""
    return source_of("cross_entropy", {
        "COUNT": n, "V": v, "CAP": float(cap or 0), "GRADIENT": int(gradient), "CHUNKS": loss_chunks(n) if gradient else 1,
        "THREADS": LOSS_THREADS,
    })


def loss_chunks(n: int) -> int:
    """Blocks that make a row of the gradient: enough of them to fill a card."""
    return max(1, 4 * FULL_CARD // n)


def cross_entropy(raw: Tensor, targets: Tensor, cap: float | None) -> Tensor | None:
    """See ``Fused.cross_entropy``."""
    n, v = (int(size) for size in raw.shape)
    if not fast(raw) or v % 8 or not n:
        return None
    kernel = cross_entropy_kernel(n, v, cap, False)
    return launched(kernel, ((n, 2), dtypes.float32), (raw, targets.cast(dtypes.int32)), n, LOSS_THREADS)


def cross_entropy_gradient(
    raw: Tensor, targets: Tensor, cap: float | None, losses: Tensor, slopes: Tensor
) -> Tensor:
    """See ``Fused.cross_entropy_gradient``."""
    n, v = (int(size) for size in raw.shape)
    inputs = raw, targets.cast(dtypes.int32), losses, slopes
    kernel = cross_entropy_kernel(n, v, cap, True)
    return launched(kernel, ((n, v), raw.dtype), inputs, n * loss_chunks(n), LOSS_THREADS)


# ----------------------------------------------------------------------------------------------------------- gated MLP


def gated_kernel(count: int, mode: int) -> tuple[str, str]:
    """Name and source of ``gelu_tanh(gate) * up`` (mode 0), and of the gradients of up (1) and gate (2)."""
    return source_of("gated", {"COUNT": count, "MODE": mode, "THREADS": GATED_THREADS})


def elementwise(gate: Tensor, others: Sequence[Tensor], mode: int) -> Tensor | None:
    """A kernel over tensors of one shape."""
    count = math.prod(map(int, gate.shape))
    if not fast(gate, *others) or count % 8 or not count:
        return None
    out, blocks = (tuple(map(int, gate.shape)), gate.dtype), -(-count // (8 * GATED_THREADS))
    return launched(gated_kernel(count, mode), out, (gate, *others), blocks, GATED_THREADS)


def gated(gate: Tensor, up: Tensor) -> Tensor | None:
    """See ``Fused.gated``."""
    return elementwise(gate, (up,), 0)


def gated_gradients(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor] | None:
    """See ``Fused.gated_gradients``."""
    to_up, to_gate = elementwise(gate, (dy,), 1), elementwise(gate, (dy, up), 2)
    return None if to_up is None or to_gate is None else (to_gate, to_up)


FUSED = Fused(
    two_products=two_products, thin=thin, rms_norm=rms_norm, rms_norm_gradient=rms_norm_gradient,
    rms_norm_weight_gradient=rms_norm_weight_gradient, softmax=softmax, softmax_gradient=softmax_gradient,
    cross_entropy=cross_entropy, cross_entropy_gradient=cross_entropy_gradient,
    gated=gated, gated_gradients=gated_gradients,
)
"""All of them."""
