"""The lowest validation loss of a run, and how long it has been since."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import is_number, shown


@dataclass
class Best:
    """What a run remembers of its evaluations; saved with each checkpoint."""

    loss: float | None = None
    """The lowest validation loss; None before the first."""
    step: int | None = None
    """The step that had it."""
    mark: float | None = None
    """The loss that the next one must stay below by ``min_delta`` to count as an improvement."""
    stale: int = 0
    """Evaluations since the last improvement."""
    evaluated: int | None = None
    """The step of the last evaluation."""

    def seen(self, step: int, loss: float, min_delta: float) -> bool:
        """Take in a validation loss; whether it is the lowest. NaN is no improvement."""
        self.evaluated = step
        better = self.mark is None or loss < self.mark - min_delta
        if better and math.isfinite(loss):
            self.mark, self.stale = loss, 0
        else:
            self.stale += 1
        lowest = math.isfinite(loss) and (self.loss is None or loss < self.loss)
        if lowest:
            self.loss, self.step = loss, step
        return lowest

    def state(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def of(cls, held: Any, step: int, where: str) -> Best:
        """What ``state`` gave, as it was at ``step``; nothing where a checkpoint does not say.

        Raises CheckpointError for what no run can have measured.
        """
        if held is None:
            return cls()
        counts, losses = ("step", "stale", "evaluated"), ("loss", "mark")
        if not isinstance(held, Mapping) or not {*counts, *losses} <= held.keys():
            raise CheckpointError(f"{where}: evaluation is {shown(held)}, which does not say what was measured")
        for name in counts:
            value = held[name]
            count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= step
            if not count and not (value is None and name != "stale"):
                raise CheckpointError(f"{where}: evaluation: {name} {shown(value)} is not a whole number up to {step}")
        for name in losses:
            if held[name] is not None and not is_number(held[name]):
                raise CheckpointError(f"{where}: evaluation: {name} {shown(held[name])} is not a finite number")
        return cls(**{name: held[name] for name in (*counts, *losses)})
