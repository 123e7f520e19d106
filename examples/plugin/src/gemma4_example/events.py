"""Callback ``events``: what happens in a run, as JSON Lines in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma4_core import CallbackBackend, TrainingCallback, hookimpl


class Events(TrainingCallback):
    """Writes a line for each event."""

    name = "events"

    def __init__(self, file: Path | None = None) -> None:
        """``file``: None is ``events.jsonl`` in the run's folder."""
        self.file = file

    def write(self, trainer: Any, event: str, **values: Any) -> None:
        """Append a line."""
        path = self.file or (trainer.folder or Path()) / "events.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": trainer.step, **values}) + "\n")

    def on_start(self, trainer: Any) -> None:
        self.write(trainer, "start", total=trainer.total)

    def on_step(self, trainer: Any, report: Any) -> None:
        self.write(trainer, "step", loss=report.loss)

    def on_evaluate(self, trainer: Any, report: Any) -> None:
        self.write(trainer, "evaluate", loss=report.loss, lowest=report.lowest)

    def on_checkpoint(self, trainer: Any, folder: Path) -> None:
        self.write(trainer, "checkpoint", folder=folder.name)

    def on_end(self, trainer: Any, fault: BaseException | None) -> None:
        self.write(trainer, "end", fault=None if fault is None else str(fault))


def build(values: Mapping[str, Any]) -> Events:
    """The callback of a run."""
    return Events()


@hookimpl
def gemma4_training_callbacks() -> list[CallbackBackend]:
    return [CallbackBackend("events", "writes what happens in a run as JSON Lines", build)]
