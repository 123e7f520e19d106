"""How the rows of a step choose, put together from what each sequence asks for."""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor

from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.engine.drafting import LONGEST
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.inputs import GraphInputs
from gemma4_core.engine.rows import bucket
from gemma4_core.engine.sequence import Sequence
from gemma4_core.errors import InputError
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.sampling import IN_PROMPT
from gemma4_core.processing.tower_graphs import put_rows


class SamplingTable:
    """Counts and biases by slot on the device, and ``SamplingRows`` for steps: the same object as long as the same
    sequences run."""

    def __init__(self, model: GemmaModel, slots: int) -> None:
        # few sizes, because graphs that choose are captured for each
        self.model, self.slots = model, slots if slots == 1 else max(bucket(slots), 8)
        self.vocab = model.config.text_config.vocab_size
        self.counts: Tensor | None = None
        """int32 ``[S, V]``, made when the first sequence needs it."""
        self.bias: Tensor | None = None
        """fp32 ``[S, V]``, likewise."""
        self._rows = GraphInputs(model.device)
        self._last: tuple[list[Sequence], SamplingRows] | None = None

    def start(self, sequence: Sequence) -> None:
        """Set the counts and biases of a sequence that got its slot."""
        assert sequence.lane is not None
        slot, choices = sequence.lane.slot, sequence.choices
        if choices.penalised:
            row = np.zeros((1, self.vocab), np.int32)
            row[0, np.unique(sequence.prompt.ids[0])] = IN_PROMPT
            self.counts = self._with(self.counts, slot, row)
        if choices.bias or self.bias is not None:
            biases = np.zeros((1, self.vocab), np.float32)
            biases[0, list(choices.bias)] = list(choices.bias.values())
            self.bias = self._with(self.bias, slot, biases)

    def _with(self, table: Tensor | None, slot: int, row: np.ndarray) -> Tensor:
        self._last = None  # some devices give a new tensor
        if table is None:
            table = upload(np.zeros((self.slots, self.vocab), row.dtype), self.model.device)
        return put_rows(table, slot, self._rows.put(str(row.dtype), row), 1)

    def rows(self, group: list[Sequence], drafts: list[list[int]] | None = None) -> SamplingRows:
        """How a group's next rows choose: one of each sequence, and one more for each of its drafts."""
        drafted = drafts is not None and any(drafts)
        masked = any(sequence.choices.constraint is not None for sequence in group)
        if self._last is not None and self._last[0] == group and not drafted and not masked:
            return self._last[1]
        lengths = [1 + len(draft) for draft in drafts] if drafts is not None else [1] * len(group)
        params = np.repeat(np.stack([sequence.choices.params for sequence in group]), lengths, axis=0)
        seeds = np.array([sequence.choices.seed & 0xFFFFFFFF for sequence in group], np.uint32)
        penalised = any(sequence.choices.penalised for sequence in group)
        made = SamplingRows(
            params, np.repeat(seeds, lengths), self.counts if penalised else None,
            self.bias if any(sequence.choices.bias for sequence in group) else None,
            self._masks(group, drafts or [[] for _ in group]) if masked else None,
            taken(drafts) if drafted and penalised and drafts is not None else None,
        )
        if not drafted and not masked:
            self._last = (list(group), made)
        return made

    def _masks(self, group: list[Sequence], drafts: list[list[int]]) -> np.ndarray:
        """uint32 ``[M, ceil(V / 32)]``: the constraints' masks, those of rows behind drafts as if these were kept."""
        masks = []
        for sequence, draft in zip(group, drafts, strict=True):
            constraint = sequence.choices.constraint
            if constraint is None:
                masks += [np.full(-(-self.vocab // 32), 0xFFFFFFFF, np.uint32)] * (1 + len(draft))
                continue
            masks.append(constraint.mask().copy())
            for token in draft:
                constraint.advance(token)
                masks.append(constraint.mask().copy())
            if draft:
                constraint.rollback(len(draft))
        return np.stack(masks)

    def allowed(self, sequence: Sequence, draft: list[int]) -> list[int]:
        """As much of a draft as the sequence's constraint allows."""
        constraint, kept = sequence.choices.constraint, 0
        if constraint is None:
            return draft
        for token in draft:
            mask = constraint.mask()
            if not mask[token // 32] >> np.uint32(token % 32) & 1:
                break
            constraint.advance(token)
            kept += 1
        if kept:
            constraint.rollback(kept)
        return draft[:kept]

    def count(self, sequence: Sequence) -> None:
        """Count anew what a sequence chose, after a step that checked drafts: those count nothing themselves."""
        if not sequence.choices.penalised or self.counts is None or sequence.lane is None:
            return
        row = np.zeros(self.vocab, np.int32)
        row[np.unique(sequence.prompt.ids[0])] = IN_PROMPT
        np.add.at(row, sequence.tokens, 1)
        self.counts = self._with(self.counts, sequence.lane.slot, row[None])
        self._last = None


def taken(drafts: list[list[int]]) -> np.ndarray:
    """int32 ``[M, k]``: for each row the drafts before it, -1 for none. k is a power of two and not small, so that few
    graphs are captured."""
    most = bucket(max(LONGEST, *(len(draft) for draft in drafts)))
    rows = []
    for draft in drafts:
        for count in range(len(draft) + 1):
            rows.append([*draft[:count], *[-1] * (most - count)])
    return np.array(rows, np.int32)


def host_choice(engine: Engine, sequence: Sequence, table: SamplingTable, logits: np.ndarray) -> tuple[int, float]:
    """The choice from fp32 logits ``[V]`` after the sequence's logits processors, and its log-probability before them.

    Raises InputError where a processor raises, or gives anything but as many numbers.
    """
    changed, ids = logits.copy(), sequence.ids
    for processor in sequence.choices.processors:
        try:
            changed = np.asarray(processor(list(ids), changed), np.float32)
        except Exception as error:
            raise InputError(f"logits_processor raised {type(error).__name__}: {error}") from error
        if changed.shape != logits.shape:
            raise InputError(f"logits_processor returned shape {list(changed.shape)}, not [{len(logits)}]")
        if np.isnan(changed).any():
            raise InputError("logits_processor returned NaN")
    if changed.max() < -1e29:
        raise InputError("logits_processor allows no id: every logit is -inf")
    assert sequence.lane is not None
    position = np.array([len(ids) - 1], np.int32)
    slot = np.array([sequence.lane.slot], np.int32)
    rows = Rows(np.array([0], np.int32), slot, position, np.array([0], np.int32))
    given = upload(np.maximum(changed, -1e30)[None], engine.model.device)
    [(token, _)] = engine.chooser.from_logits(given, rows, table.rows([sequence])).read()
    return token, float(logits[token] - log_sum(logits))


def log_sum(logits: np.ndarray) -> float:
    """log(sum(exp(logits)))."""
    top = float(logits.max())
    return top + float(np.log(np.exp(logits.astype(np.float64) - top).sum()))


def top_tokens(logits: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest ids of fp32 logits ``[V]`` with their log-probabilities, the likeliest first."""
    if not count:
        return ()
    likeliest = np.argpartition(-logits, min(count, len(logits) - 1))[:count]
    likeliest = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
    total = log_sum(logits)
    return tuple((int(i), float(logits[i] - total)) for i in likeliest)
