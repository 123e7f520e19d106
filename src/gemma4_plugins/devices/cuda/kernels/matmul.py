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
from gemma4_plugins.devices.cuda.kernels.sources import defines, device_source, source_file
from gemma4_plugins.devices.source_kernels import launch

LEAST_ARCH = 80
"""Ampere: the first with bf16 matrix units and asynchronous copies."""
FULL_CARD = 132
"""Blocks below which smaller tiles are taken, and K is cut, so that every multiprocessor has one."""
LARGE, SMALL = (128, 128, 2, 4), (64, 64, 2, 2)
"""Rows and columns of a tile, and of its grid of warps."""
LEAST_DEPTH = 256
"""Of a piece of K."""
HOPPER_ROWS, HOPPER_STAGES, HOPPER_DEPTH = 128, 4, 64
HOPPER_COLUMNS = {128: 0.6, 256: 1.0}
"""Of a tile, and the time that a tile takes."""
HOPPER_LEAST_K = 512
"""With fewer steps a tile alone on its multiprocessor waits for its first and last bytes too long: at 256 the other
kernel, of which two run side by side, makes 125 TFLOP/s to 101. Measured there and from 768 on."""
FORMS = {"nt": (False, False), "nn": (False, True), "tn": (True, True)}
"""Whether K runs down the columns of a and of b."""


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
    if a.dtype != dtypes.bfloat16 or b.dtype != dtypes.bfloat16 or not usable(str(a.device)):
        return None
    a_down, b_down = FORMS[form]
    m, k = (int(n) for n in (a.shape[:-3:-1] if a_down else a.shape[-2:]))
    n = int(b.shape[-1] if b_down else b.shape[-2])
    count, shared = math.prod(a.shape[:-2]), math.prod(b.shape[:-2])
    if a.shape[-1] % 8 or b.shape[-1] % 8 or n % 2 or not all((m, n, k, shared)) or count % shared:
        return None
    pieces = cuts(form, m, n, k) if count == 1 else 1
    tile = tile_of(m, n, count * pieces)
    values = {"M": m, "N": n, "K": k // pieces, "GROUP": count // shared, "WIDE": int(wide or pieces > 1)}
    out = (count * pieces, m, n), dtypes.float32 if values["WIDE"] else dtypes.bfloat16
    target, binary = target_of(str(a.device)), None
    name, source = kernel(values, form, tile)
    grid, threads = (-(-n // tile[1]), -(-m // tile[0]), count * pieces), 32 * tile[2] * tile[3]
    if tile == LARGE and values["K"] >= HOPPER_LEAST_K and str(target.arch) == "sm_90":
        columns = columns_of(m, n, count * pieces)
        own_name, own_source = hopper_kernel(values, form, columns)
        binary = dynamic.compiled(str(a.device), device_source(own_source))
        if binary is not None:
            name, source = own_name, own_source
            grid, threads = (-(-n // columns), -(-m // HOPPER_ROWS), count * pieces), 256
    made = launch(name, device_source(source), out, (a, b), target, grid, (threads, 1, 1),
                  operations=2 * count * m * n * k, binary=binary)
    if pieces > 1:
        made = made.sum(0).cast(dtypes.float32 if wide else dtypes.bfloat16)
    return made.reshape(*a.shape[:-2], m, n)  # [count, M, N] -> [..., M, N]


def tile_of(m: int, n: int, count: int) -> tuple[int, int, int, int]:
    """The large tile where that makes work for half of the card."""
    blocks = -(-m // LARGE[0]) * -(-n // LARGE[1]) * count
    return LARGE if blocks >= FULL_CARD // 2 else SMALL


def cuts(form: str, m: int, n: int, k: int) -> int:
    """Pieces of K whose sums are made side by side and then added. Only where K runs down both: a piece is whole rows."""
    pieces = 1
    while form == "tn" and k % (pieces * 2) == 0 and k // (pieces * 2) >= LEAST_DEPTH:
        if -(-m // SMALL[0]) * -(-n // SMALL[1]) * pieces >= FULL_CARD:
            break
        pieces *= 2
    return pieces


def columns_of(m: int, n: int, count: int) -> int:
    """The columns of a tile with which a Hopper card is through first, a tile on every multiprocessor at a time."""
    rounds = {columns: -(-(-(-m // HOPPER_ROWS) * -(-n // columns) * count) // FULL_CARD) for columns in HOPPER_COLUMNS}
    return min(rounds, key=lambda columns: rounds[columns] * HOPPER_COLUMNS[columns])


def hopper_kernel(values: Mapping[str, int], form: str, columns: int) -> tuple[str, str]:
    """As ``kernel``, on Hopper's warpgroup matrix unit, in tiles of ``HOPPER_ROWS`` rows."""
    down = dict(zip(("A_DOWN", "B_DOWN"), map(int, FORMS[form]), strict=True))
    shared_bytes = HOPPER_STAGES * (HOPPER_ROWS + columns) * HOPPER_DEPTH * 2
    name = dynamic.named("_".join(["matmul", form, *(str(v) for v in (*values.values(), "wide", columns))]), shared_bytes)
    types = f"#define NAME {name}\n#define OUT {'float' if values['WIDE'] else 'u16'}\n"
    sizes = {"TILE_M": HOPPER_ROWS, "TILE_N": columns, "STAGES": HOPPER_STAGES, "DEPTH": HOPPER_DEPTH}
    body = source_file("wgmma") + source_file("matmul_wide")
    return name, types + defines({**values, **sizes, **down}) + body


def kernel(values: Mapping[str, int], form: str, tile: tuple[int, int, int, int]) -> tuple[str, str]:
    """Name and source of a kernel, but for the instruction set."""
    shape = dict(zip(("TILE_M", "TILE_N", "WARPS_M", "WARPS_N"), tile, strict=True))
    down = dict(zip(("A_DOWN", "B_DOWN"), map(int, FORMS[form]), strict=True))
    name = "_".join(["matmul", form, *(str(v) for v in (*values.values(), *tile[:2]))])
    types = f"#define NAME {name}\n#define OUT {'float' if values['WIDE'] else 'u16'}\n"
    return name, types + defines({**values, **shape, **down}) + source_file("matmul")
