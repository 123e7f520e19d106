"""A run of training steps that can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.config.files import read_json, shown, shown_path
from gemma4_core.errors import CheckpointError, InputError
from gemma4_core.training.batch import IGNORED
from gemma4_core.training.checkpoint import RUN_FILE, load_training_checkpoint, save_training_checkpoint
from gemma4_core.training.data.batches import Batches
from gemma4_core.training.schedules import constant, cosine, linear
from gemma4_core.training.step import train_step

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel
    from gemma4_core.training.optimizer import TrainingOptimizer

SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}


@dataclass(frozen=True)
class Plan:
    """How a run goes."""

    lr: float = 1e-5
    steps: int | None = None
    """None is as many as ``epochs`` have."""
    epochs: int = 1
    schedule: str = "constant"
    warmup: int = 0
    """Steps in which the rate grows to ``lr``."""
    clip: float | None = 1.0
    """Largest global norm of the gradients; None leaves them as they are."""
    checkpointing: bool = False
    """Whether layers are recomputed in the backward pass, for less memory."""


@dataclass(frozen=True)
class StepReport:
    """What one step did."""

    step: int
    """Counted from 1."""
    epoch: int
    """Counted from 1."""
    loss: float
    """Before the update."""
    lr: float
    gradient_norm: float | None
    """Before clipping; None without."""
    tokens: int
    """Ids of examples, padding left out."""
    targets: int
    """Ids that were learnt."""
    seconds: float


class Trainer:
    """Steps over batches.

        trainer = Trainer(model, optimizer, batches, Plan(lr=1e-4, epochs=3))
        for report in trainer:
            print(report.step, report.loss)
        trainer.save("run")

    A run that was saved goes on with ``trainer.resume("run")``, bit for bit as if it had not stopped.
    """

    def __init__(self, model: GemmaModel, optimizer: TrainingOptimizer, batches: Batches, plan: Plan) -> None:
        """Raises InputError for a plan that cannot be."""
        if plan.schedule not in SCHEDULES:
            raise InputError(f"schedule {shown(plan.schedule)}: choose one of {', '.join(SCHEDULES)}")
        self.model, self.optimizer, self.batches, self.plan = model, optimizer, batches, plan
        self.step = 0
        """Steps done."""
        self.epoch = self.index = 0
        """The epoch that is under way and the steps done of it."""
        self.total = plan.steps if plan.steps is not None else batches.steps(plan.epochs)
        """Steps of the whole run."""
        self.rate(0)
        if not optimizer.rates and (plan.warmup or plan.schedule != "constant"):
            raise InputError(f"schedule {plan.schedule}, warm-up {plan.warmup}: optimizer {optimizer.name} has no "
                             f"lr that can be changed; leave both out")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0. Raises InputError for a warm-up longer than the run."""
        return SCHEDULES[self.plan.schedule](self.plan.lr, step, self.total, self.plan.warmup)

    def __iter__(self) -> Iterator[StepReport]:
        """Do what is left to do, a step each time. Raises InputError where the loss is no number any more."""
        while self.step < self.total:
            steps = self.batches.epoch(self.epoch)
            while self.index < len(steps) and self.step < self.total:
                report = self._step(steps[self.index])
                self.step, self.index = self.step + 1, self.index + 1
                yield report
            if self.index == len(steps):
                self.epoch, self.index = self.epoch + 1, 0

    def _step(self, rows: Any) -> StepReport:
        began = time.perf_counter()
        made = [self.batches.make(batch) for batch in rows]
        rate = self.rate(self.step)
        loss = train_step(
            self.model, self.optimizer, made, lr=rate if self.optimizer.rates else None, max_norm=self.plan.clip,
            checkpointing=self.plan.checkpointing,
        ).item()
        norm = self.optimizer.gradient_norm
        if not math.isfinite(loss):
            raise InputError(f"step {self.step + 1}: the loss is {loss}, training cannot go on; use a lower --lr than "
                             f"{self.plan.lr:g}, a longer --warmup or a --clip")
        tokens = sum(len(self.batches.items[i].ids) for batch in rows for row in batch for i in row)
        targets = sum(int((batch.labels != IGNORED).sum()) for batch in made)
        held = None if norm is None else norm.item()
        seconds = time.perf_counter() - began
        return StepReport(self.step + 1, self.epoch + 1, loss, rate, held, tokens, targets, seconds)

    # ------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """Where the run stands, and what must be equal for it to go on."""
        batches = self.batches
        return {
            "step": self.step,
            "position": {"epoch": self.epoch, "index": self.index},
            # nothing else is drawn at random: steps have no dropout
            "random": {"seed": batches.seed, "epoch": self.epoch},
            "data": {
                "digest": batches.examples.digest, "batch_size": batches.batch_size, "accumulate": batches.accumulate,
                "pack": batches.pack,
            },
        }

    def save(self, folder: Path | str, settings: Mapping[str, Any] | None = None) -> Path:
        """A training checkpoint of the run as it is; ``settings`` are kept with it. Raises CheckpointError."""
        metadata = self.state() | ({} if settings is None else {"settings": dict(settings)})
        return save_training_checkpoint(self.model, folder, self.optimizer, metadata)

    def resume(self, folder: Path | str) -> None:
        """Take over weights, optimizer state and position.

        Raises CheckpointError for a folder that no run was saved in, InputError where data, seed or batches are others.
        """
        where = shown_path(folder)
        held = read_json(Path(folder) / RUN_FILE, error=CheckpointError).get("training_metadata")
        own = self.state()
        if not isinstance(held, dict) or not own.keys() <= held.keys():
            raise CheckpointError(f"{where}: {RUN_FILE} does not say where a run stands; start anew")
        check_position(held, where)
        for name, ours, theirs in (
            ("seed", own["random"]["seed"], held["random"]["seed"]),
            *((key, own["data"][key], held["data"].get(key)) for key in own["data"]),
        ):
            if ours != theirs:
                what = "the examples are" if name == "digest" else f"{name} is {ours!r}"
                before = "others" if name == "digest" else f"{theirs!r}"
                raise InputError(f"{where}: {what} not what the run began with ({before} there); go on with the same, "
                                 f"or start anew in another folder")
        load_training_checkpoint(folder, self.model, self.optimizer)
        self.step, place = held["step"], held["position"]
        self.epoch, self.index = place["epoch"], place["index"]


def check_position(held: Mapping[str, Any], where: str) -> None:
    """Check what a saved run says of where it stands. Raises CheckpointError naming the key."""
    for name in ("position", "random", "data"):
        if not isinstance(held[name], dict):
            raise CheckpointError(f"{where}: {RUN_FILE} has {name} {shown(held[name])}; it must be an object")
    place, random = held["position"], held["random"]
    for name, value in (
        ("step", held["step"]), ("position.epoch", place.get("epoch")), ("position.index", place.get("index")),
        ("random.seed", random.get("seed")),
    ):
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise CheckpointError(f"{where}: {RUN_FILE} has {name} {shown(value)}; it must be a whole number from 0")
