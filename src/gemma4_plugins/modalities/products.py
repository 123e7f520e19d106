"""The costly operations of a tower, for many rows: portable here, in kernels for some devices.

A tower runs differentiable with the portable form, and captured with the best form that its device has.
"""

from __future__ import annotations

from tinygrad import Tensor, dtypes

from gemma4_core.ops import Operations, kernels_wanted
from gemma4_core.ops.portable import MASKED, gelu_tanh, rms_norm
from gemma4_core.ops.products import kept, linear, product
from gemma4_core.weights import Matrix
from gemma4_plugins.modalities.bounds import Bounds, clamp

Rotation = tuple[Tensor, Tensor]
"""cos and sin ``[N, 2, D / 4]`` in fp32, of a patch's column and of its row."""
QUERY_ROWS = 1280
"""Queries attended at once: bounds the scores in memory for large budgets."""


class Products:
    """The portable form."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """``x [n, in]`` times ``matrix [out, in]`` transposed: ``[n, out]`` in x's dtype."""
        if self.ops.replaced("linear"):
            return kept(self.ops.linear(kept(x), matrix))
        return linear(x, matrix, self.ops.linear)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        """Attention of every position to all real ones, scale 1, softmax in fp32.

        ``q [N, heads, D]``, ``k, v [N, kv heads, D]``, ``real`` bool ``[N]``: ``[N, heads * D]``. With ``real``
        ``[media, N / media]`` positions attend to those of their own medium; only the portable form has that.
        """
        count, heads, size = q.shape
        groups, media = k.shape[1], real.shape[0] if real.ndim == 2 else 1
        # [N, heads, D] -> [media, kv heads, heads per kv head, N / media, D]
        q = q.reshape(media, -1, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
        # [N, kv heads, D] -> [media, kv heads, 1, N / media, D]
        k, v = (x.reshape(media, -1, groups, size).permute(0, 2, 1, 3).unsqueeze(2) for x in (k, v))
        q, k, v = kept(q), kept(k), kept(v)
        seen = real.reshape(media, 1, 1, 1, -1)
        rows = []
        for start in range(0, count // media, QUERY_ROWS):
            scores = kept(product(q[:, :, :, start : start + QUERY_ROWS], k.transpose(-1, -2)))
            weights = kept(seen.where(scores, MASKED).softmax(-1).cast(v.dtype))
            rows.append(kept(product(weights, v).cast(v.dtype)))
        mixed = rows[0].cat(*rows[1:], dim=3) if len(rows) > 1 else rows[0]
        return mixed.permute(0, 3, 1, 2, 4).reshape(count, heads * size)

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, bounds: Bounds | None = None, added: Tensor | None = None
    ) -> Tensor:
        """Root-mean-square norm of ``x [n, width]``, bounded before, in fp32; added to ``added``, and kept then."""
        normed = rms_norm(clamp(x, bounds), weight, eps)
        # in memory after each addition: else every reader repeats the additions before it
        return normed if added is None else (added + normed).contiguous()

    def heads(
        self, x: Tensor, size: int, weight: Tensor | None, eps: float, bounds: Bounds | None, turn: Rotation | None
    ) -> Tensor:
        """Heads of ``x [N, heads * D]``, bounded, normed each for itself and turned: ``[N, heads, D]``."""
        x = clamp(x, bounds).reshape(x.shape[0], -1, size)  # [N, heads * D] -> [N, heads, D]
        normed = rms_norm(x, weight, eps)
        return normed if turn is None else rotate(normed, *turn)

    def bounded(self, x: Tensor, bounds: Bounds | None) -> Tensor:
        """``x`` between bounds, about to be read by a product."""
        return clamp(x, bounds)

    def silu(self, x: Tensor, bounds: Bounds | None, after: Bounds | None) -> Tensor:
        """``x · sigmoid(x)`` in fp32, bounded before and after."""
        wide = clamp(x, bounds).cast(dtypes.float32)
        return clamp((wide * wide.sigmoid()).cast(x.dtype), after)

    def gated(
        self, gate: Tensor, up: Tensor, gate_bounds: Bounds | None, up_bounds: Bounds | None, bounds: Bounds | None
    ) -> Tensor:
        """``gelu(gate) * up``, each ``[n, width]``, both operands and the result bounded."""
        return clamp(gelu_tanh(clamp(gate, gate_bounds)) * clamp(up, up_bounds), bounds)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Two-dimensional rotary embedding of ``x [N, heads, D]``: the first half of a head turns with the patch's column,
    the second with its row; inside a half, lane j pairs with lane j + D/4. ``cos, sin`` are ``[N, 2, D/4]``."""
    count, heads, size = x.shape
    halves = x.reshape(count, heads, 2, 2, size // 4)  # [N, heads, axis, lane half, D/4]
    first, second = halves[:, :, :, 0], halves[:, :, :, 1]  # [N, heads, axis, D/4]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [N, 1, axis, D/4]
    turned = (first * cos - second * sin).stack(second * cos + first * sin, dim=3)
    return turned.reshape(count, heads, size).cast(x.dtype)


def fast_products(ops: Operations, device: str) -> Products:
    """The best form that a device has, for use without gradients; ``GEMMA4_KERNELS=portable`` allows none, and neither
    does a product of somebody's own."""
    if kernels_wanted() and not ops.replaced("linear"):
        from gemma4_plugins.devices.cpu.kernels import towers as cpu
        from gemma4_plugins.devices.cuda.kernels import towers as cuda
        from gemma4_plugins.devices.cuda.kernels.matmul import usable

        if usable(device):
            return cuda.CudaProducts(ops, device)
        if cpu.usable(device):
            return cpu.CpuProducts(ops, device)
    return Products(ops)
