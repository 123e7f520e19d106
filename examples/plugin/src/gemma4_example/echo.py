"""Drafter ``echo``: proposes that the tokens from some distance back come again, as in lists and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma4_core import DrafterBackend, InputError, Option, hookimpl

if TYPE_CHECKING:
    import numpy as np


class Echo:
    """Looks at nothing but the ids that the slots hold."""

    needs_hidden = False

    def __init__(self, slots: Any, distance: int) -> None:
        self.slots, self.distance = slots, distance

    def propose(self, rows: Any, hidden: Any, k: int) -> np.ndarray:
        """int32 ``[N, k]``, -1 where a sequence is too short."""
        import numpy as np

        proposed = np.full((rows.count, k), -1, np.int32)
        for row, (slot, newest) in enumerate(zip(rows.slot, rows.ids, strict=True)):
            ids = [*self.slots.tokens(int(slot)), int(newest)]
            if len(ids) >= self.distance:
                period = ids[-self.distance :]
                proposed[row] = [period[i % self.distance] for i in range(k)]
        return proposed


def build(target: Any, slots: Any, values: Mapping[str, Any]) -> Echo:
    """The drafter for some slots."""
    distance = values["echo_distance"]
    if distance < 1:
        raise InputError(f"--echo-distance {distance}: must be at least 1")
    return Echo(slots, distance)


@hookimpl
def gemma4_drafters() -> list[DrafterBackend]:
    option = Option("--echo-distance", "How far back the tokens that come again stand.", type=int, default=1)
    return [DrafterBackend("echo", "the tokens from some distance back", build, options=(option,))]
