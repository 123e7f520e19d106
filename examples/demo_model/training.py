"""A run of training: resumable, limited in time, logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo_model.configs import write_start
from demo_model.rows import Recipe
from demo_model.supply import Supply
from gemma4_core import build_optimizer, load_pretrained, load_training_checkpoint, save_training_checkpoint, train_step
from gemma4_core.model import GemmaModel
from gemma4_core.training import cosine
from gemma4_core.training.log import CsvLog, draw_curve
from gemma4_core.training.run_folder import RunFolder

CLIP = 1.0
LOG_EVERY = 20
"""Steps; reading a loss waits for the device."""
SAVING_SECONDS = 15.0
"""Kept free at the end of a call."""
SAVE_EVERY = 180.0
"""Seconds; what a killed process loses at most."""


@dataclass(frozen=True)
class Settings:
    """What makes a run what it is; all but times must be the same when it goes on."""

    variant: str = "demo"
    seed: int = 0
    steps: int | None = None
    """None: as many as fit, decided when the warm-up has shown how fast the machine is."""
    lr: float = 2e-3
    warmup: int = 300
    final: float = 0.02
    """Share of the rate that is left at the end."""
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    dtype: str = "bfloat16"
    device: str = "auto"
    weights: Path | None = None
    """Folder of a model of the variant to begin with, in place of random weights."""
    processes: int = 12
    minutes: float = 9.0
    """Of one run, from the start of the process."""
    total_minutes: float = 27.0


def fitting_steps(rate: float, ready: float, settings: Settings) -> int:
    """Steps that all runs together have time for, at ``rate`` steps per second, each ready after ``ready`` seconds."""
    runs = max(1, int(settings.total_minutes / settings.minutes))
    usable = runs * max(30.0, settings.minutes * 60 - ready - SAVING_SECONDS)
    return max(settings.warmup + 1, int(rate * usable * 0.97))


class Run:
    """One run in its folder."""

    def __init__(
        self, folder: Path, settings: Settings, recipe: Recipe, options: dict[str, Any], began: float
    ) -> None:
        """``options`` are what the run was begun with, for ``settings.json``; ``began`` is when the process did."""
        self.folder, self.settings, self.recipe, self.began = RunFolder(folder), settings, recipe, began
        self.step, self.steps = 0, settings.steps
        found = self.folder.checkpoints()
        self.folder.start(options | {"recipe": asdict(recipe)}, resume=bool(found))
        begun = folder / "start"
        new = lambda: settings.weights or write_start(begun, settings.variant, settings.seed, options["easy"])  # noqa: E731
        start = found[-1][1] if found else new()
        self.model: GemmaModel = load_pretrained(start, device=settings.device, dtype=settings.dtype, ple="device")
        self.optimizer = build_optimizer(
            self.model, settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay
        )
        if found:
            held = load_training_checkpoint(start, self.model, self.optimizer)
            self.step, self.steps = int(held["step"]), held["steps"]
        self.start = start

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def done(self) -> bool:
        return self.steps is not None and self.step >= self.steps

    def rate(self) -> float:
        """The learning rate of the next step; the warm-up does not depend on how many steps there will be."""
        s, steps = self.settings, self.steps or 1_000_000
        return cosine(s.lr, self.step, max(steps, s.warmup + 1), s.warmup, s.final)

    def train(self, say: Callable[[str], None]) -> None:
        """Steps until the run is done or its minutes are over; saved in the end, and on Ctrl-C."""
        s = self.settings
        made = Supply(self.start, self.recipe, s.seed, self.step, s.processes)
        with made as supply, CsvLog(self.folder.log, self.step) as log:
            try:
                self._steps(supply, log, say)
            except KeyboardInterrupt:
                say("stopped; the same command goes on")
        self.save()
        draw_curve(self.folder.log, self.folder.curve)

    def _steps(self, supply: Supply, log: CsvLog, say: Callable[[str], None]) -> None:
        first, ready, marked = self.step, 0.0, time.perf_counter()
        saved = marked
        losses: list[Any] = []
        while not self.done and self.seconds < self.settings.minutes * 60 - SAVING_SECONDS:
            batch, rate = supply.take(), self.rate()
            losses.append(train_step(self.model, self.optimizer, batch, lr=rate, max_norm=CLIP))
            self.step += 1
            if self.step - first == 2:
                losses[-1].item()
                ready, marked = self.seconds, time.perf_counter()
            if self.step % LOG_EVERY == 0 or self.done:
                loss = float(np.mean([loss.item() for loss in losses]))
                passed = time.perf_counter() - marked
                tokens = len(losses) * self.recipe.rows * self.recipe.width
                log.add({"step": self.step, "loss": loss, "lr": rate, "tokens": tokens, "seconds": passed,
                         "tokens_per_second": tokens / passed})
                speed = len(losses) / passed
                say(f"step {self.step}/{self.steps or '?'}  loss {loss:.4f}  lr {rate:.2e}  {speed:.2f} steps/s")
                if self.steps is None and self.step >= self.settings.warmup:
                    self.steps = fitting_steps(speed, ready, self.settings)
                if time.perf_counter() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.perf_counter()
                losses, marked = [], time.perf_counter()

    def save(self) -> Path:
        """A checkpoint of the run as it stands."""
        if self.step == 0:
            return self.start
        target = self.folder.step(self.step)
        if not target.exists():
            save_training_checkpoint(self.model, target, self.optimizer, {"step": self.step, "steps": self.steps})
            self.folder.saved(self.step, 2)
        return target
