"""What training takes from an NVIDIA GPU beside products: kernels in source form, without gradients of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.ops.fused import Fused
from gemma4_plugins.devices.cuda.kernels.matmul import target_of, two_products, usable
from gemma4_plugins.devices.cuda.kernels.sources import defines, device_source, source_file
from gemma4_plugins.devices.source_kernels import launch

MOST_COLUMNS = 64
"""Of a thin product: a block holds 16 rows of it in fp32 for each of its warps, in 48 KB."""


def source_of(file: str, values: Mapping[str, int | float]) -> tuple[str, str]:
    """Name and source of a kernel, but for the instruction set; the name tells all values."""
    words = [str(value).replace(".", "p").replace("-", "m").replace("+", "") for value in values.values()]
    name = "_".join([file, *words])
    return name, defines({"NAME": name, **values}) + source_file(file)


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


FUSED = Fused(two_products=two_products, thin=thin)
"""All of them."""
