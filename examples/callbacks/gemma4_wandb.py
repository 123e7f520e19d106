"""Callback ``wandb``: a run's curves, settings and best loss at Weights & Biases.

    pip install ./examples/callbacks wandb
    gemma4 train … -o run --callback wandb --wandb-project gemma

A run that is resumed goes on in the same place: its id stands in ``wandb-id.txt`` in the run's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma4_core import CallbackBackend, InputError, Option, TrainingCallback, hookimpl


class WandbWriter(TrainingCallback):
    """Logs to a project; wandb itself keeps what the network does not take."""

    name = "wandb"
    required = False  # a log is no reason to end a run

    def __init__(self, project: str = "gemma4", run_name: str | None = None) -> None:
        """Raises InputError where wandb is not installed."""
        try:
            import wandb
        except ImportError as fault:
            raise InputError("wandb is not installed; install it with: pip install wandb") from fault
        self.wandb, self.project, self.run_name = wandb, project, run_name
        self.run: Any = None

    def on_start(self, trainer: Any) -> None:
        folder = trainer.folder or Path()
        held = folder / "wandb-id.txt"
        known = held.read_text(encoding="utf-8").strip() if trainer.step and held.is_file() else None
        self.run = self.wandb.init(project=self.project, name=self.run_name, dir=str(folder), id=known,
                                   resume="allow" if known else None, config=trainer.settings)
        held.write_text(f"{self.run.id}\n", encoding="utf-8")

    def on_step(self, trainer: Any, report: Any) -> None:
        values = {"loss": report.loss, "lr": report.lr, "epoch": report.epoch, "gradient_norm": report.gradient_norm,
                  "tokens_per_second": report.tokens / report.seconds}
        known = {f"train/{name}": value for name, value in values.items() if value is not None}
        self.run.log(known, step=report.step)

    def on_evaluate(self, trainer: Any, report: Any) -> None:
        self.run.log({"validation/loss": report.loss, "validation/perplexity": report.perplexity}, step=report.step)
        if report.lowest:
            self.run.summary["best_validation_loss"] = report.loss
            self.run.summary["best_step"] = report.step

    def on_end(self, trainer: Any, fault: BaseException | None) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if fault is None else 1)


@hookimpl
def gemma4_training_callbacks() -> list[CallbackBackend]:
    options = (Option("--wandb-project", "Project of the run.", default="gemma4", metavar="NAME"),
               Option("--wandb-name", "Name of the run.", metavar="NAME"))
    return [CallbackBackend("wandb", "logs a run at Weights & Biases",
                            lambda values: WandbWriter(values["wandb_project"], values["wandb_name"]), options)]
