"""CUDA kernels: the decode step as one persistent kernel, prompts on the tensor cores. See docs/performance.md."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_core.ops import Operations


def operations() -> Operations:
    """What these kernels replace, and kernels written in UOps for what they do not serve; all portable where that is
    asked for."""
    from gemma4_core.ops import kernels_wanted, portable

    if not kernels_wanted():
        return portable()
    from gemma4_plugins.devices import uops
    from gemma4_plugins.devices.cuda.kernels.chunk import CHUNK
    from gemma4_plugins.devices.cuda.kernels.matmul import matmul
    from gemma4_plugins.devices.cuda.kernels.step import AHEAD, step
    from gemma4_plugins.devices.cuda.kernels.towers import tower_operations
    from gemma4_plugins.devices.cuda.kernels.training import FUSED

    return replace(
        uops.operations(), name="cuda", prefill_chunk=CHUNK, shared_chunk=CHUNK, step=step, run_ahead=AHEAD,
        prefill_both_ways=CHUNK, least_tokens=256, matmul=matmul, fused=FUSED, towers=tower_operations,
    )
