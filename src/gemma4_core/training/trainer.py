"""A run of training steps that can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import CheckpointError, InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.training.batch import IGNORED
from gemma4_core.training.checkpoint import RUN_FILE, read_run, restore, save_training_checkpoint
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

    def __post_init__(self) -> None:
        """Raises InputError for values that no run can have."""
        for name, low in (("steps", 1), ("epochs", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not (value is None and name == "steps") and (type(value) is not int or not low <= value < 1 << 40):
                raise InputError(f"{name} {shown(plain_number(value))}: must be a whole number from {low}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if not (value is None and name == "clip") and (not fits or (name == "clip" and value == 0)):
                raise InputError(f"{name} {shown(plain_number(value))}: must be a finite number "
                                 f"{'above' if name == 'clip' else 'from'} 0")


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
    """Ids that were trained on."""
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
        """Do what is left to do, a step each time. Raises InputError where the loss is NaN or infinite."""
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
        """A training checkpoint of the run as it is; ``settings`` are saved with it. Raises CheckpointError."""
        metadata = self.state() | ({} if settings is None else {"settings": dict(settings)})
        return save_training_checkpoint(self.model, folder, self.optimizer, metadata)

    def resume(self, folder: Path | str) -> None:
        """Restore weights, optimizer state and position.

        Raises CheckpointError for a folder that no run was saved in or whose files are damaged, InputError where data,
        seed, batches or optimizer are others. Both name the file and what is wrong in it.
        """
        folder = Path(folder)
        run = read_run(folder)
        step, epoch, index = self._position(run.get("training_metadata"), shown_path(folder / RUN_FILE))
        restore(folder, self.model, self.optimizer, run)
        self.step, self.epoch, self.index = step, epoch, index

    def _position(self, held: Any, where: str) -> tuple[int, int, int]:
        """Step, epoch and steps of that epoch from what ``state`` gave. Raises CheckpointError, InputError."""
        own = self.state()
        if not isinstance(held, dict) or not own.keys() <= held.keys():
            raise CheckpointError(f"{where}: does not say where a run stands; start over in another folder")
        begun = {"seed": part(held, "random", "seed", where), **part(held, "data", None, where)}
        for name, ours in {"seed": own["random"]["seed"], **own["data"]}.items():
            if name not in begun:
                raise CheckpointError(f"{where}: {name} is missing; start over in another folder")
            if begun[name] != ours or type(begun[name]) is not type(ours):
                raise InputError(f"{where}: {changed(name, ours, begun[name])}, or start over in another folder")
        step, epoch = whole(held["step"], "step", where), whole(part(held, "position", "epoch", where), "epoch", where)
        index = whole(part(held, "position", "index", where), "index", where)
        if step > self.total:
            raise InputError(f"{where}: the run is at step {step} already and ends at {self.total}; give more steps")
        length = len(self.batches.epoch(epoch)) if epoch <= step else 0
        if index > length or self.batches.steps(epoch) + index != step or held["random"].get("epoch") != epoch:
            raise CheckpointError(f"{where}: step {step} is not where epoch {epoch}, index {index} is; the file is "
                                  f"damaged, go on from another checkpoint")
        return step, epoch, index


def part(held: Mapping[str, Any], name: str, key: str | None, where: str) -> Any:
    """A mapping in a run's state, or one of its values. Raises CheckpointError."""
    found = held[name]
    if not isinstance(found, dict) or (key is not None and key not in found):
        raise CheckpointError(f"{where}: {name} is {shown(found)}, which does not say where a run stands")
    return found if key is None else found[key]


def whole(value: Any, name: str, where: str) -> int:
    """A count in a run's state. Raises CheckpointError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise CheckpointError(f"{where}: {name} {shown(plain_number(value))} is not a whole number from 0")
    return value


def plain_number(value: Any) -> Any:
    """A number that can be shown: Python refuses to write very long ones."""
    return f"of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 64 else value


def changed(name: str, ours: Any, theirs: Any) -> str:
    """What differs from the run that goes on, and what to give."""
    if name == "digest":
        return ("the examples are not what the run began with: the data, their length limit or how they are rendered "
                "has changed; give the same as then")
    flag = "--" + name.replace("_", "-")
    how = (f"with {flag}" if theirs else f"without {flag}") if isinstance(ours, bool) else \
        f"with {flag} {shown(plain_number(theirs))}"
    return f"{name} {shown(ours)} is not what the run began with, {shown(plain_number(theirs))}; go on {how}"
