"""Callbacks of training: what is told of a run while it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.contracts.context import Matches, Option, always

if TYPE_CHECKING:
    from gemma4_core.training.evaluate import EvaluationReport
    from gemma4_core.training.trainer import StepReport, Trainer


class TrainingCallback:
    """Told of each event of a run: ``Trainer(…, callbacks=[…])``. Override what you need; the rest does nothing.

    ``trainer`` has ``step`` (done), ``total``, ``epoch``, ``plan``, ``optimizer``, ``batches``, ``model``, ``best``,
    ``settings`` (numbers and names for a log) and ``folder``, where the run is written. ``trainer.stop()`` ends the run
    after this step. Weights and batches are not a callback's to change: a run could not be resumed exactly.

    What a callback raises ends the run after the step that is under way: the command saves that step, names the
    callback and exits with code 1; in Python the loop raises PluginError.
    """

    name: str = ""
    """What messages call it; empty is the class's name."""
    required: bool = True
    """False: where it raises it is switched off with a warning, and the run goes on without it."""

    def on_start(self, trainer: Trainer) -> None:
        """The run begins, or goes on: then ``trainer.step`` is above 0."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """A step is done; ``trainer.step`` counts it."""

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """The validation loss was measured."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """The run was saved in ``folder``, which is whole."""

    def on_end(self, trainer: Trainer, fault: BaseException | None) -> None:
        """The run ends. ``fault`` is what broke it off; None where it is done, or was stopped and saved."""


@dataclass(frozen=True)
class CallbackBackend:
    """A callback that ``gemma4 train --callback NAME`` puts into a run."""

    name: str
    summary: str
    build: Callable[[Mapping[str, Any]], TrainingCallback]
    """``build(values)``: a callback for one run; gets the values of ``options`` by keyword. Called before weights are
    read. Raises InputError where something is missing."""
    options: tuple[Option, ...] = ()
    """``gemma4 train`` alone takes them."""
    matches: Matches = always
    priority: int = 0
