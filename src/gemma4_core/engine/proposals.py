"""What is known, or proposed by drafters, to follow the newest tokens of a step's sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemma4_core.engine.choices import SamplingTable
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.rows import joined
from gemma4_core.engine.sequence import Sequence
from gemma4_core.errors import InputError
from gemma4_core.ops.graphs import upload

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Drafter

FORCED = 7
"""Most ids without a choice that one step takes: with the newest token they are a short chunk, whose graph drafts have
too."""


class Proposals:
    """The drafters of one scheduler, and what constraints leave no choice about."""

    def __init__(self, engine: Engine, table: SamplingTable) -> None:
        self.engine, self._table = engine, table
        self._usable = engine.model.config.text_config.usable_ids
        self._drafters: dict[tuple[str, int], Drafter] = {}
        """By name and slots: a cache of one sequence may move to larger ones."""

    def of(self, group: list[Sequence]) -> list[list[int]]:
        """What is proposed to follow each sequence's newest token: the ids that its constraint leaves no choice about,
        else a drafter's; nothing where no drafter is asked for."""
        found: dict[Sequence, list[int]] = {}
        for sequence in group:
            ids = self._forced(sequence)
            sequence.forced = bool(ids)
            if ids:
                found[sequence] = ids
        wanted = [0 if sequence.forced else self._count(sequence) for sequence in group]
        for name in {s.drafting.name for s, count in zip(group, wanted, strict=True) if s.drafting and count}:
            mine = [(s, n) for s, n in zip(group, wanted, strict=True) if n and s.drafting and s.drafting.name == name]
            found |= self._proposed(mine)
        return [found.get(sequence, []) for sequence in group]

    def _forced(self, sequence: Sequence) -> list[int]:
        """Ids that must follow: they go through the model in one step, and it is asked about each, so that the answer
        and its log-probabilities are those of a step for each."""
        constraint = sequence.choices.constraint
        if constraint is None or sequence.choices.processors:
            return []
        ids = list(constraint.forced()[: min(FORCED, self._room(sequence))])
        stop = next((i for i, token in enumerate(ids) if not 0 <= token < self._usable), len(ids))
        return self._table.allowed(sequence, ids[:stop])

    def _count(self, sequence: Sequence) -> int:
        """Tokens to propose."""
        if sequence.drafting is None or sequence.choices.processors:
            return 0
        return sequence.drafting.wanted(self._room(sequence))

    def _room(self, sequence: Sequence) -> int:
        """How many tokens fit behind the newest one: the rows into the answer, the slot, a chunk and the rings' slack;
        0 or less is none."""
        assert sequence.lane is not None
        slot = sequence.lane.slots.capacity - sequence.length - sequence.run - 1
        return max(min(sequence.limit - len(sequence.tokens) - 1, slot, self.engine.model.chunk - 1), 0)

    def _proposed(self, mine: list[tuple[Sequence, int]]) -> dict[Sequence, list[int]]:
        """What one drafter proposes for some sequences; where it raises, or gives anything but ids ``[N, k]``, their
        answers end with that."""
        try:
            return self._asked(mine)
        except Exception as error:
            for sequence, _ in mine:
                name = sequence.drafting.name if sequence.drafting is not None else ""
                sequence.error = InputError(f"drafter {name}: {type(error).__name__}: {error}")
            return {}

    def _asked(self, mine: list[tuple[Sequence, int]]) -> dict[Sequence, list[int]]:
        """As much of the proposals as counts, vocabulary and constraints allow."""
        drafting, lane = mine[0][0].drafting, mine[0][0].lane
        assert drafting is not None and lane is not None
        key = (drafting.name, id(lane.slots))
        if key not in self._drafters:
            self._drafters[key] = drafting.build(lane.slots)
        drafter = self._drafters[key]
        rows = joined([sequence.next_rows() for sequence, _ in mine])
        states = [s.drafting.hidden for s, _ in mine if s.drafting is not None and s.drafting.hidden is not None]
        hidden = None
        if drafter.needs_hidden:
            if len(states) < len(mine):
                return {}
            hidden = upload(np.stack(states), self.engine.model.device)
        made = drafter.propose(rows, hidden, max(count for _, count in mine))
        proposals = made if isinstance(made, np.ndarray) else made.numpy()
        found = {}
        for (sequence, count), proposal in zip(mine, proposals.tolist(), strict=True):
            draft = proposal[:count]
            stop = next((i for i, token in enumerate(draft) if not 0 <= token < self._usable), len(draft))
            found[sequence] = self._table.allowed(sequence, draft[:stop])
        return found

    def wants_hidden(self, group: list[Sequence]) -> bool:
        """Whether a drafter of these sequences needs the hidden states that their tokens are chosen from."""
        names = {sequence.drafting.name for sequence in group if sequence.drafting is not None}
        return any(drafter.needs_hidden for (name, _), drafter in self._drafters.items() if name in names)
