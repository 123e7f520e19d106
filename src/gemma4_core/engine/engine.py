"""``Engine``: runs rows of one model against slots, by the device's own step where it serves them, else portably."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.engine.choosing import Chooser, Kind
from gemma4_core.engine.portable import Captured, PortableSteps
from gemma4_core.engine.rows import chunks, greedy_rows, joined, prompt_rows
from gemma4_core.engine.view import ModelView
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.media import PlacedPrompt
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.slots import SlotStore
from gemma4_core.ops import LAYER_KERNELS
from gemma4_core.ops.graphs import upload

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Step, StepResult


GREEDY_TOKEN = ("token", Kind(True))
"""The key of the portable graph that decodes a token."""


class Several:
    """The results of rows that were run one call after another, each taken over before the next call overwrites it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._choices: list[tuple[int, float]] = []
        self._hidden: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []

    def take(self, result: StepResult, count: int, *, hidden: bool, logits: bool) -> None:
        """Take over the next call's result, of so many wanted rows."""
        self._choices += result.read()
        parts = ((hidden, result.hidden, self._hidden), (logits, result.logits, self._logits))
        for asked, found, into in parts:
            if asked and found is not None:
                into.append(found.float().numpy()[:count])

    @property
    def ids(self) -> Tensor:
        """int32 ``[M]``."""
        return upload(np.array([token for token, _ in self._choices], np.int32), self.device)

    @property
    def hidden(self) -> Tensor | None:
        """``[M, H]``."""
        return upload(np.concatenate(self._hidden), self.device) if self._hidden else None

    @property
    def logits(self) -> Tensor | None:
        """fp32 ``[M, V]``."""
        return upload(np.concatenate(self._logits), self.device) if self._logits else None

    def read(self) -> list[tuple[int, float]]:
        """See ``StepResult.read``."""
        return self._choices


class Engine:
    """Runs prompts and steps for one model."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.vocab = model.config.text_config.vocab_size
        self.chooser = Chooser(model)
        self.portable = PortableSteps(model, self.chooser)
        self.view = ModelView(model, self.chooser)
        """What devices get of this engine and its model."""

    # ------------------------------------------------------------------------------------------- steps

    def step(self, slots: SlotStore) -> Step | None:
        """The device's own step against these slots, None where it brings none that serves the model."""
        if "step" not in slots.graphs:
            own = self.model.operations.step
            slots.graphs["step"] = own(self.view, slots) if own is not None else None
        return cast("Step | None", slots.graphs["step"])

    def run(
        self, slots: SlotStore, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        """Append the rows' keys and values and choose for the wanted ones, which are all, each slot's last, or none."""
        step = self.step(slots)
        if step is not None and step.serves(rows, sampling):
            return step(rows, sampling, hidden=hidden, logits=logits)
        if len(rows.runs) == 1 or (step is None and rows.media is None):
            return self.portable.run(slots, rows, sampling)
        several, ids = Several(self.model.device), rows.ids.numpy() if isinstance(rows.ids, Tensor) else rows.ids
        for run in rows.runs:
            part, one = self._part(rows, ids, sampling, run)
            result = self.run(slots, part, one, hidden=hidden, logits=logits)
            several.take(result, len(part.wanted), hidden=hidden, logits=logits)
        return several

    @staticmethod
    def _part(
        rows: Rows, ids: np.ndarray, sampling: SamplingRows | None, run: slice
    ) -> tuple[Rows, SamplingRows | None]:
        """The rows of one slot, and how they choose."""
        mine = (rows.wanted >= run.start) & (rows.wanted < run.stop)
        media = None if rows.media is None else rows.media.part(run)
        part = Rows(ids[run], rows.slot[run], rows.position[run], rows.wanted[mine] - run.start, media)
        return part, None if sampling is None else sampling.part(mine)

    def chunk_size(self, slots: SlotStore) -> int:
        """Positions of a prompt that go through one call."""
        step = self.step(slots)
        limit = self.model.operations.graph_chunk if step is None or step.max_rows == 1 else step.max_rows
        return min(self.model.chunk, limit)

    # ------------------------------------------------------------------------------------------- hidden states

    def hidden_states(self, cache: GemmaCache, placed: PlacedPrompt) -> tuple[np.ndarray, DType]:
        """Append a prompt to a cache; its final hidden states fp32 ``[B, T, H]`` on the host, and the dtype that they
        had on the device."""
        batch, total = placed.ids.shape
        slots = cache.reserve(self.model, batch, cache.length + total)
        size, media = self.chunk_size(slots), placed.soft is not None
        parts, dtype = [], self.model.dtype
        groups = [[row] for row in range(batch)] if media or self.step(slots) is not None else [list(range(batch))]
        for group in groups:
            for start, stop in chunks(placed, group[0], 0, size):
                at = cache.length + start
                rows = joined([prompt_rows(placed, row, start, stop, slot=row, at=at) for row in group])
                hidden = self.run(slots, rows, None, hidden=True).hidden
                assert hidden is not None
                dtype = hidden.dtype
                found = hidden.numpy().astype(np.float32, copy=False)[: rows.count]
                parts.append((group, start, found.reshape(len(group), stop - start, -1)))
        cache.note(placed.signature)
        whole = np.empty((batch, total, parts[0][2].shape[2]), np.float32)
        for group, start, values in parts:
            whole[group, start : start + values.shape[1]] = values
        return whole, dtype

    def logits(self, hidden: np.ndarray, dtype: DType) -> Tensor:
        """Logits fp32 ``[B, T, V]`` of final hidden states fp32 ``[B, T, H]`` that had this dtype."""
        return self.chooser.logits(hidden, dtype)

    # ------------------------------------------------------------------------------------------- what runs how

    def device_steps(self, slots: SlotStore) -> tuple[str, ...]:
        """Which rows the device runs by itself against these slots: ``decode`` (one), ``prefill`` (a chunk)."""
        step = self.step(slots)
        one, many = (Rows(np.zeros(n, np.int32), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.array([n - 1]))
                     for n in (1, 2))
        found = {"decode": one, "prefill": many}
        return tuple(name for name, rows in found.items() if step is not None and step.serves(rows, greedy_rows(1)))

    def step_kernels(self, slots: SlotStore) -> int:
        """Kernels that a greedy token launches: 1 where it is the device's own, else those of the captured graph, 0
        before that has run."""
        names = self._token_kernels(slots)
        return len(names) if names is not None else int("decode" in self.device_steps(slots))

    def layer_kernels(self, slots: SlotStore) -> int:
        """Those of a greedy token's kernels that ``Operations.layers`` brought; 0 where it was not used, or served
        nothing."""
        return sum(name.startswith(LAYER_KERNELS) for name in self._token_kernels(slots) or ())

    def _token_kernels(self, slots: SlotStore) -> list[str] | None:
        found = [graph for key, graph in slots.graphs.items() if isinstance(graph, Captured) and key == GREEDY_TOKEN]
        return found[0].graph.names if found else None
