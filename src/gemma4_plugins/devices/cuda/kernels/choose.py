"""Drawing a token from a step's logits on the device, by one kernel behind the step's own."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor, dtypes

from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels.plan import HISTORY
from gemma4_plugins.devices.cuda.kernels.sources import choose_source, device_source

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import SamplingRows

THREADS, SCORES_EACH = 256, 32
"""Threads of a block, and the scores that one keeps at most."""
ROOM_BYTES = 2 * 256 * 8 + 3 * 8 * 4 + 16
"""A block's shared memory."""
SETTINGS = 5
"""What the kernel takes of ``SamplingRows.params``: all up to the repetition penalty."""


def board_bytes(blocks: int) -> int:
    """The memory that blocks share: eight histograms, a counter, a part for each block."""
    return 8 * 256 * 8 + 8 + blocks * 24


@lru_cache(8)
def compiled(vocabulary: int, blocks: int) -> launch.Kernel:
    """The kernel for so many tokens, cached."""
    constants = {"VOCAB": vocabulary, "GRID": blocks, "HISTORY": HISTORY, "CHOOSERS": THREADS,
                 "ROOM_BYTES": ROOM_BYTES, "BOARD_BYTES": board_bytes(blocks)}  # fmt: skip
    return launch.Kernel(device_source(choose_source(constants)), "choose_token", THREADS, ROOM_BYTES)


@dataclass(frozen=True)
class Drawing:
    """How one row chooses, as the kernel takes it: made once for each ``SamplingRows``, not for each token."""

    numbers: tuple[Any, ...]
    """Temperature, top-k, top-p, min-p, repetition penalty and seed, as ctypes values."""
    counts: Tensor | None
    """int32 ``[S, V]``, or None where nothing is counted."""
    first: int
    """Its address."""
    row_bytes: int
    """Of the counts of one slot."""

    @classmethod
    def of(cls, sampling: SamplingRows) -> Drawing:
        """That of the only row of ``sampling``, which is a ``simple`` one."""
        numbers = (*map(ctypes.c_float, sampling.params[0, :SETTINGS].tolist()), ctypes.c_uint32(int(sampling.seed[0])))
        counts = sampling.counts
        if counts is None:
            return cls(numbers, None, 0, 0)
        return cls(numbers, counts, launch.address(counts), int(counts.nbytes()) // int(counts.shape[0]))

    def counted(self, slot: int) -> int:
        """The address of a slot's counts, 0 where there are none."""
        return self.first + slot * self.row_bytes


class Chooser:
    """Draws tokens as ``gemma4_core.ops.sampling.sample`` does, and counts them."""

    def __init__(self, vocabulary: int, device: str, suppressed: Tensor | None) -> None:
        self.blocks = launch.attribute("MULTIPROCESSOR_COUNT")
        self.kernel, self.suppressed = compiled(vocabulary, self.blocks), suppressed
        self.board = Tensor.zeros(board_bytes(self.blocks) // 4, dtype=dtypes.uint32, device=device).contiguous().realize()
        self.fixed = (0 if suppressed is None else launch.address(suppressed), launch.address(self.board))

    @staticmethod
    def serves(vocabulary: int) -> bool:
        """Whether the scores fit into the threads' registers and all blocks are resident at once."""
        blocks = launch.attribute("MULTIPROCESSOR_COUNT")
        return vocabulary <= blocks * THREADS * SCORES_EACH and compiled(vocabulary, blocks).resident_blocks() >= 1

    def launch(
        self, logits: int, position: int, drawing: Drawing, slot: int, outputs: tuple[int, int], history: int,
        sequence: int,
    ) -> None:  # fmt: skip
        """Queue the drawing of the token at ``position`` from fp32 ``logits [1, V]``: its id int32 ``[1]`` and its
        log-probability fp32 ``[1]`` go to ``outputs``, both and the sequence number to the history. All are addresses."""
        suppressed, board = self.fixed
        pointers = (logits, suppressed, drawing.counted(slot), board, *outputs, history)
        numbers = map(ctypes.c_uint32, (position, sequence))
        self.kernel.launch(self.blocks, [*map(ctypes.c_uint64, pointers), *numbers, *drawing.numbers])
