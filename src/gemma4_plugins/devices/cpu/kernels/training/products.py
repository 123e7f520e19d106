"""Products of matrices for training on this machine's processor, without gradients of their own."""

from __future__ import annotations

from collections.abc import Sequence

from tinygrad import Tensor, dtypes

from gemma4_core.devices import machine
from gemma4_plugins.devices.cpu.kernels import build
from gemma4_plugins.devices.cpu.kernels.training.launching import count, run, served

FORMS = {"nt": (False, False), "nn": (False, True), "tn": (True, True)}
"""Whether the depth of a product runs down the columns of a and of b."""
MOST_ROWS, MOST_COLUMNS, MOST_SUMS, FEWEST = 512, 256, 1 << 16, 64
"""Rows, columns and sums of a job, as ``matmul.c`` has room for them; and rows and columns that are worth one."""
THIN = 64
FILES = (build.HERE / "transpose.c", build.HERE / "amx.c")


def matmul(a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor | None:
    """See ``gemma4_core.ops.Operations.matmul``."""
    return multiplied((a, b), form, wide) if fitting(a, b) else None


def two_products(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, form: str) -> Tensor | None:
    """See ``gemma4_core.ops.fused.Fused.two_products``: sums go on along the second pair's depth."""
    if any(x.ndim != 2 for x in (a, b, a2, b2)) or not served(a, b, a2, b2):
        return None
    return multiplied((a, b, a2, b2), form)


def thin(x: Tensor, a: Tensor, factor: float, form: str) -> Tensor | None:
    """See ``gemma4_core.ops.fused.Fused.thin``."""
    return multiplied((x, a), form, factor=factor) if fitting(x, a) else None


def scaled_product(x: Tensor, numbers: Tensor, scale: Tensor, form: str) -> Tensor | None:
    """See ``gemma4_core.ops.fused.Fused.scaled_product``."""
    return multiplied((x, numbers), form, scale=scale) if packed(x, numbers, scale) else None


def scaled_two_products(
    x: Tensor, numbers: Tensor, scale: Tensor, x2: Tensor, b2: Tensor, form: str
) -> Tensor | None:
    """See ``gemma4_core.ops.fused.Fused.scaled_two_products``."""
    if not packed(x, numbers, scale) or x2.ndim != 2 or b2.ndim != 2 or not served(x, x2, b2):
        return None
    return multiplied((x, numbers, x2, b2), form, scale=scale)


def packed(x: Tensor, numbers: Tensor, scale: Tensor) -> bool:
    """Whether these are rows and a matrix of int8 numbers with scales."""
    return (x.ndim == numbers.ndim == 2 and numbers.dtype == dtypes.int8 and scale.dtype == dtypes.float32
            and scale.shape == numbers.shape[:1] and count(numbers.shape) > 0 and served(x))


def fitting(a: Tensor, b: Tensor) -> bool:
    """Whether each of b's matrices serves as many of a's in a row."""
    return served(a, b) and a.ndim >= 2 and b.ndim >= 2 and count(a.shape[:-2]) % count(b.shape[:-2]) == 0


def multiplied(
    tensors: Sequence[Tensor], form: str, wide: bool = False, factor: float = 1.0, scale: Tensor | None = None
) -> Tensor | None:
    """The product of two tensors, or the sum of those of two pairs; with ``scale`` the second of them is int8."""
    a, b = tensors[:2]
    down = FORMS[form]
    m, k = map(int, a.shape[:-3:-1] if down[0] else a.shape[-2:])
    n = int(b.shape[-1] if down[1] else b.shape[-2])
    second = int(tensors[2].shape[-1]) if len(tensors) > 2 else 0
    matrices, group = count(a.shape[:-2]), count(a.shape[:-2]) // count(b.shape[:-2])
    rows, columns = m, n
    if group > 1 and not down[0]:
        matrices, group, rows = matrices // group, 1, m * group  # matrices in a row are one
    # what is packed for all rows of the other side is the shorter one; where both are packed, the left side costs more,
    # which pays for a result that is written across its rows only where that is thin
    turned = (form == "nt" and columns > rows) or (form == "tn" and columns <= THIN and columns < rows)
    left_down, right_down = down[::-1] if turned else down
    if turned:
        rows, columns = columns, rows
    blocks = jobs(rows, columns, matrices)
    bf16 = a.dtype == dtypes.bfloat16
    numbers = (rows, columns, k, second, matrices, group, int(turned), int(wide), int(left_down), int(right_down),
               *blocks, float(factor), int(scale is not None))
    out = (*(int(size) for size in a.shape[:-2]), m, n), dtypes.float32 if wide else a.dtype
    kind = a.dtype.name if scale is None else f"{a.dtype.name}_int8"
    name = "_".join(map(str, ("training_matmul", form, m, n, k, second, matrices, group, int(wide), kind)))
    inputs = tensors if scale is None else (*tensors[:2], scale, *tensors[2:])
    return run("matmul", name, numbers, out, inputs, bf16, 2 * count(out[0]) * (k + second), FILES)


def jobs(rows: int, columns: int, matrices: int) -> tuple[int, int]:
    """Rows and columns of a job: as many as fit, or so many fewer that all cores have work."""
    wide = min(-(-columns // 16) * 16, MOST_COLUMNS)
    high = min(-(-rows // 32) * 32, MOST_ROWS, MOST_SUMS // (-(-wide // 64) * 64) // 32 * 32)
    wanted = 2 * machine.thread_count()
    while -(-rows // high) * -(-columns // wide) * matrices < wanted and max(high, wide) > FEWEST:
        if high >= wide:
            high = -(-high // 64) * 32
        else:
            wide = -(-wide // 32) * 16
    return high, wide
