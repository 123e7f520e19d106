"""Products of bf16 matrices on the tensor cores as kernels of tinygrad's graph: for training, and for towers.

tinygrad's own kernels reach 30 to 60 TFLOP/s there, these about ten times as much. Hopper has kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.helpers import Context as TinygradContext

from gemma4_plugins.devices.cuda.kernels import dynamic
from gemma4_plugins.devices.cuda.kernels.sources import defines, device_source, source_file, source_of
from gemma4_plugins.devices.cuda.kernels.tiles import HOPPER_DEPTH, HOPPER_STAGES, Tile, chosen
from gemma4_plugins.devices.source_kernels import launch

LEAST_ARCH = 80
"""Ampere: the first with bf16 matrix units and asynchronous copies."""
FORMS = {"nt": (False, False), "nn": (False, True), "tn": (True, True)}
"""Whether K runs down the columns of a and of b."""

THIN = {16, 32}
"""Columns of a matrix whose products down the columns with another have a kernel of their own."""


@lru_cache
def target_of(device: str) -> Any:
    """What tinygrad compiles for there."""
    # layers that training recomputes are traced with devices locked
    with TinygradContext(ALLOW_DEVICE_USAGE=1):
        return Device[device].renderer.target


def usable(device: str) -> bool:
    """Whether this is an NVIDIA GPU that the kernels were written for."""
    if not device.startswith("CUDA"):
        return False
    arch = str(target_of(device).arch)
    return arch.startswith("sm_") and arch[3:].rstrip("af").isdigit() and int(arch[3:].rstrip("af")) >= LEAST_ARCH


def matmul(a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor | None:
    """See ``gemma4_core.ops.Operations.matmul``."""
    if not served(a, b, form):
        return None
    if wide and form == "tn" and a.ndim == b.ndim == 2 and THIN & {a.shape[1], b.shape[1]}:
        return thin_gradient(a, b)
    return multiplied(a, b, form, wide)


def two_products(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, form: str) -> Tensor | None:
    """See ``gemma4_core.ops.fused.Fused.two_products``: the kernel's sum goes on along K through the second pair."""
    if any(x.ndim != 2 for x in (a, b, a2, b2)) or not (served(a, b, form) and served(a2, b2, form)):
        return None
    return multiplied(a, b, form, second=(a2, b2))


def served(a: Tensor, b: Tensor, form: str) -> bool:
    """Whether the kernels take this product."""
    if a.dtype != dtypes.bfloat16 or b.dtype != dtypes.bfloat16 or not usable(str(a.device)):
        return False
    m, n, k = sizes_of(a, b, form)
    count, shared = math.prod(a.shape[:-2]), math.prod(b.shape[:-2])
    aligned = a.shape[-1] % 8 == 0 and b.shape[-1] % 8 == 0 and n % 2 == 0
    return aligned and all((m, n, k, shared)) and count % shared == 0


def sizes_of(a: Tensor, b: Tensor, form: str) -> tuple[int, int, int]:
    """M, N and K of a product."""
    a_down, b_down = FORMS[form]
    m, k = (int(n) for n in (a.shape[:-3:-1] if a_down else a.shape[-2:]))
    return m, int(b.shape[-1] if b_down else b.shape[-2]), k


def multiplied(
    a: Tensor, b: Tensor, form: str, wide: bool = False, second: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The product of what is ``served``, plus that of a second pair."""
    m, n, k = sizes_of(a, b, form)
    deep = 0 if second is None else sizes_of(*second, form)[2]
    count = math.prod(a.shape[:-2])
    target, binary = target_of(str(a.device)), None
    values = {"M": m, "N": n, "K": k, "GROUP": count // math.prod(b.shape[:-2]), "WIDE": int(wide), "K2": deep}
    for hopper in (True, False) if str(target.arch) == "sm_90" else (False,):
        tile, pieces = chosen(m, n, k, count, hopper)
        name, source = kernel(values | {"PARTS": pieces, "WIDE": int(wide or pieces > 1)}, form, tile)
        if tile.warps is None:
            binary = dynamic.compiled(str(a.device), device_source(source))
        if tile.warps is not None or binary is not None:
            break
    out = (count * pieces, m, n), dtypes.float32 if wide or pieces > 1 else dtypes.bfloat16
    grid = -(-n // tile.columns), -(-m // tile.rows), count * pieces
    made = launch(name, device_source(source), out, (a, b, *(second or ())), target, grid, (tile.threads, 1, 1),
                  operations=2 * count * m * n * (k + deep), binary=binary)
    if pieces > 1:
        made = made.sum(0).cast(dtypes.float32 if wide else dtypes.bfloat16)
    return made.reshape(*a.shape[:-2], m, n)  # [count, M, N] -> [..., M, N]


def kernel(values: Mapping[str, int], form: str, tile: Tile) -> tuple[str, str]:
    """Name and source of a kernel, but for the instruction set."""
    constants: dict[str, int | float | str] = {**values, "TILE_M": tile.rows, "TILE_N": tile.columns}
    constants |= dict(zip(("A_DOWN", "B_DOWN"), map(int, FORMS[form]), strict=True))
    name = "_".join(["matmul", form, *(str(v) for v in values.values()), f"{tile.rows}x{tile.columns}"])
    if tile.warps is None:
        name = dynamic.named(f"{name}_wide", HOPPER_STAGES * (tile.rows + tile.columns) * HOPPER_DEPTH * 2)
        constants |= {"STAGES": HOPPER_STAGES, "DEPTH": HOPPER_DEPTH}
        body = source_file("wgmma") + source_file("matmul_wide")
    else:
        constants |= dict(zip(("WARPS_M", "WARPS_N"), tile.warps, strict=True))
        body = source_file("matmul")
    return name, defines({"NAME": name, "OUT": "float" if values["WIDE"] else "u16", **constants}) + body


def thin_gradient(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b`` in fp32, where one of them is thin."""
    turned = b.shape[1] in THIN
    thin, other = (b, a) if turned else (a, b)
    (t, r), n = (int(size) for size in thin.shape), int(other.shape[1])
    name, source = thin_gradient_kernel(t, r, n, turned)
    out, grid = ((n, r) if turned else (r, n), dtypes.float32), (-(-n // 64), 1, 1)
    return launch(name, device_source(source), out, (thin, other), target_of(str(a.device)), grid,
                  (32 * thin_gradient_warps(r), 1, 1), operations=2 * t * r * n)


def thin_gradient_kernel(t: int, r: int, n: int, turned: bool) -> tuple[str, str]:
    """Name and source of ``u.T @ x`` for ``u [t, r]`` and ``x [t, n]``, or of its transpose."""
    values = {"T": t, "R": r, "N": n, "TURNED": int(turned), "WARPS": thin_gradient_warps(r)}
    return source_of("thin_gradient", values)


def thin_gradient_warps(r: int) -> int:
    """Warps that share T: each holds a sum of 64 columns in 32 KB together."""
    return 128 // r
