"""Batches made ahead by other processes: the same for the same seed and step, however many processes make them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from demo_model.configs import SOFT_TOKENS, VISION
from demo_model.rows import Maker, Recipe, Rows
from demo_model.tokens import open_tokenizer
from gemma4_core import GemmaTrainingBatch
from gemma4_plugins.modalities.vision.preprocess import Grid

GRID = Grid(SOFT_TOKENS, VISION["patch_size"], VISION["pooling_kernel_size"], VISION["position_embedding_size"])
AHEAD = 2
"""Batches in the making for each process."""
LONGEST_WAIT = 300
"""Seconds for a batch, which takes less than one; a process that was killed gives none."""
_made_by: dict[str, Any] = {}


def begin(folder: Path, recipe: Recipe, seed: int) -> None:
    """Set a process up."""
    _made_by["maker"] = Maker(open_tokenizer(folder), recipe, GRID)
    _made_by["seed"] = seed


def make(step: int) -> Rows:
    """The batch of a step."""
    rows: Rows = _made_by["maker"].make(np.random.default_rng([_made_by["seed"], step]))
    return rows


class Supply:
    """Batches from ``first`` on, in order; a context manager that ends its processes."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int, first: int, processes: int) -> None:
        self.next = first
        self.waiting: deque[Any] = deque()
        self.pool: Any = None
        if not processes:
            begin(folder, recipe, seed)
            return
        # a forked child would hold the parent's device
        self.pool = multiprocessing.get_context("spawn").Pool(processes, begin, (folder, recipe, seed))
        self.thread = ThreadPoolExecutor(1)
        for _ in range(AHEAD * processes):
            self._order()

    def _order(self) -> None:
        made = self.pool.apply_async(make, (self.next,))
        # widened to floats beside the trainer, which meanwhile waits for the device
        self.waiting.append(self.thread.submit(lambda: made.get(LONGEST_WAIT).batch(GRID)))
        self.next += 1

    def take(self) -> GemmaTrainingBatch:
        """The next batch."""
        if self.pool is None:
            self.next += 1
            return make(self.next - 1).batch(GRID)
        ready: Future[GemmaTrainingBatch] = self.waiting.popleft()
        batch = ready.result()
        self._order()
        return batch

    def __enter__(self) -> Supply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            # first the thread: once its processes are gone it would wait for ever
            self.thread.shutdown(wait=True, cancel_futures=True)
            self.pool.terminate()
            self.pool.join()
