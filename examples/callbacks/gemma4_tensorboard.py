"""Callback ``tensorboard``: losses, learning rate and speed of a run for TensorBoard.

    pip install ./examples/callbacks tensorboardX tensorboard
    gemma4 train … -o run --callback tensorboard
    tensorboard --logdir run
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma4_core import CallbackBackend, InputError, Option, TrainingCallback, hookimpl


class TensorBoardWriter(TrainingCallback):
    """Writes event files into ``tensorboard`` in the run's folder, or into another one."""

    name = "tensorboard"
    required = False  # a log is no reason to end a run

    def __init__(self, folder: str | None = None) -> None:
        """Raises InputError where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as fault:
            raise InputError("tensorboardX is not installed; install it with: pip install tensorboardX") from fault
        self.make, self.folder = SummaryWriter, folder
        self.writer: Any = None

    def on_start(self, trainer: Any) -> None:
        folder = self.folder or str((trainer.folder or Path()) / "tensorboard")
        # points behind the step that the run goes on from are of steps that are done again
        self.writer = self.make(logdir=folder, purge_step=trainer.step + 1 if trainer.step else None)
        rows = [f"| {name} | {value} |" for name, value in trainer.settings.items()]
        self.writer.add_text("settings", "\n".join(["| option | value |", "|---|---|", *rows]), trainer.step)

    def on_step(self, trainer: Any, report: Any) -> None:
        values = {"loss": report.loss, "lr": report.lr, "gradient_norm": report.gradient_norm,
                  "tokens_per_second": report.tokens / report.seconds, "epoch": report.epoch}
        self.write("train", values, report.step)

    def on_evaluate(self, trainer: Any, report: Any) -> None:
        self.write("validation", {"loss": report.loss, "perplexity": report.perplexity}, report.step)
        self.writer.flush()

    def on_end(self, trainer: Any, fault: BaseException | None) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        """Points of several curves."""
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{group}/{name}", value, step)


@hookimpl
def gemma4_training_callbacks() -> list[CallbackBackend]:
    folder = Option("--tensorboard-dir", "Folder of the event files.  [default: tensorboard in the run's folder]",
                    metavar="FOLDER")
    return [CallbackBackend("tensorboard", "writes curves for TensorBoard",
                            lambda values: TensorBoardWriter(values.get("tensorboard_dir")), (folder,))]
