"""A run of training steps that can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import CheckpointError, InputError, PluginError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.training.batch import IGNORED
from gemma4_core.training.best import Best
from gemma4_core.training.callbacks import Callbacks
from gemma4_core.training.checkpoint import RUN_FILE, read_run, restore, save_training_checkpoint
from gemma4_core.training.data.batches import Batches
from gemma4_core.training.evaluate import EvaluationReport, Evaluator
from gemma4_core.training.finite import check_finite
from gemma4_core.training.schedules import constant, cosine, linear
from gemma4_core.training.step import train_step

if TYPE_CHECKING:
    from gemma4_core.contracts import TrainingCallback
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
    early_stop: int = 0
    """The run ends after so many evaluations in a row without improvement; 0 is never."""
    min_delta: float = 0.0
    """How much lower a validation loss must be to count as an improvement."""

    def __post_init__(self) -> None:
        """Raises InputError for values that no run can have."""
        for name, low in (("steps", 1), ("epochs", 1), ("warmup", 0), ("early_stop", 0)):
            value = getattr(self, name)
            if not (value is None and name == "steps") and (type(value) is not int or not low <= value < 1 << 40):
                raise InputError(f"{name} {shown(plain_number(value))}: must be a whole number from {low}")
        for name in ("lr", "clip", "min_delta"):
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

    Callbacks are told of the start before the first step and of the end when the loop is left; inside of ``with
    trainer:`` the end comes when that block is left, after what is saved in it.
    """

    def __init__(
        self, model: GemmaModel, optimizer: TrainingOptimizer, batches: Batches, plan: Plan,
        callbacks: Sequence[TrainingCallback] = (), folder: Path | str | None = None,
    ) -> None:
        """``folder`` is where callbacks may write files of their own. Raises InputError for a plan that cannot be, and
        for what is no callback."""
        if plan.schedule not in SCHEDULES:
            raise InputError(f"schedule {shown(plan.schedule)}: choose one of {', '.join(SCHEDULES)}")
        self.model, self.optimizer, self.batches, self.plan = model, optimizer, batches, plan
        self.step = 0
        """Steps done."""
        self.epoch = self.index = 0
        """The epoch that is under way and the steps done of it."""
        self.total = plan.steps if plan.steps is not None else batches.steps(plan.epochs)
        """Steps of the whole run."""
        self.best = Best()
        """The lowest validation loss so far."""
        self.callbacks = Callbacks(callbacks)
        self.folder = None if folder is None else Path(folder)
        self.intact = True
        """Whether the weights are those after ``step``: not in the middle of a step, nor after one that went wrong."""
        self._evaluator: Evaluator | None = None
        self._stop = self._open = self._inside = False
        self.rate(0)
        if not optimizer.rates and (plan.warmup or plan.schedule != "constant"):
            raise InputError(f"schedule {plan.schedule}, warm-up {plan.warmup}: optimizer {optimizer.name} has no "
                             f"lr that can be changed; leave both out")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0. Raises InputError for a warm-up longer than the run."""
        return SCHEDULES[self.plan.schedule](self.plan.lr, step, self.total, self.plan.warmup)

    @property
    def stopped_early(self) -> bool:
        """Whether ``early_stop`` evaluations in a row were no improvement."""
        return bool(self.plan.early_stop) and self.best.stale >= self.plan.early_stop

    @property
    def ending(self) -> bool:
        """Whether no step follows."""
        return self.step >= self.total or self.stopped_early or self._stop

    @property
    def settings(self) -> dict[str, Any]:
        """What a log says of the run: its plan, batches and optimizer, as numbers, texts and true or false."""
        batches, optimizer = self.batches, self.optimizer
        return {
            **vars(self.plan), "total_steps": self.total, "batch_size": batches.batch_size,
            "accumulate": batches.accumulate, "pack": batches.pack, "seed": batches.seed,
            "examples": len(batches.items), "optimizer": optimizer.name,
            "trained_parameters": sum(int(param.numel()) for param in optimizer.params),
        }

    def stop(self) -> None:
        """End the run after the step that is under way."""
        self._stop = True

    def __enter__(self) -> Trainer:
        """Tell callbacks of the start. Raises PluginError where one fails."""
        self._begin()
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._finish(fault)

    def __iter__(self) -> Iterator[StepReport]:
        """Do what is left to do, a step each time.

        Raises InputError where the loss is NaN or infinite, and PluginError where a callback fails, after the step has
        been given out.
        """
        alone = not self._open
        fault: BaseException | None = None
        if alone:
            self._begin()
        self._inside = True
        try:
            while not self.ending:
                steps = self.batches.epoch(self.epoch)
                while self.index < len(steps) and not self.ending:
                    report = self._step(steps[self.index])
                    self.step, self.index = self.step + 1, self.index + 1
                    self.callbacks.tell("on_step", self, report)
                    yield report
                    self.callbacks.check()
                if self.index == len(steps):
                    self.epoch, self.index = self.epoch + 1, 0
        except GeneratorExit:  # the loop was left; what is raised here would be lost, ``save`` raises it
            if alone:
                self.callbacks.tell("on_end", self, None)
            alone = False
            raise
        except BaseException as error:
            fault = error
            raise
        finally:
            self._inside = self._stop = False
            if alone:
                self._finish(fault)

    def _begin(self) -> None:
        self.callbacks.tell("on_start", self)
        try:
            self.callbacks.check()
        except PluginError as fault:
            self._finish(fault)
            raise

    def _finish(self, fault: BaseException | None) -> None:
        """Tell callbacks of the end. Raises PluginError where one fails and nothing else did."""
        self.callbacks.tell("on_end", self, fault)
        if fault is None:
            self.callbacks.check()

    def _tell(self, event: str, about: Any) -> None:
        """Tell callbacks; inside of the loop one that fails ends it after the step, elsewhere at once."""
        self.callbacks.tell(event, self, about)
        if not self._inside:
            self.callbacks.check()

    def evaluate(
        self, batches: Batches, stop: Callable[[], bool] = lambda: False
    ) -> EvaluationReport | None:
        """Measure the mean loss on examples that are not trained on, and remember the lowest.

        Args:
            batches: of examples to validate on.
            stop: asked between batches; where it says so there is no result.

        Returns:
            the loss, or None where ``stop`` said so.

        Raises:
            InputError: media that can no longer be read.
            PluginError: a callback fails, outside of the loop.
        """
        if self._evaluator is None:
            self._evaluator = Evaluator(self.model)
        loss = self._evaluator.loss(batches.make(rows) for rows in batches.order() if not stop())
        if stop():
            return None
        lowest = self.best.seen(self.step, loss, self.plan.min_delta)
        report = EvaluationReport(self.step, loss, lowest, self.best.stale)
        self._tell("on_evaluate", report)
        return report

    def measure(self, rows: Any) -> StepReport:
        """Take a step over batches of examples, for a run that is given up: ``step`` and callbacks know nothing of it.

        Raises as the loop does.
        """
        return self._step(rows)

    def _step(self, rows: Any) -> StepReport:
        began = time.perf_counter()
        made = [self.batches.make(batch) for batch in rows]
        self.intact = False
        rate = self.rate(self.step)
        loss = train_step(
            self.model, self.optimizer, made, lr=rate if self.optimizer.rates else None, max_norm=self.plan.clip,
            checkpointing=self.plan.checkpointing, step=self.step,
        ).item()
        norm = self.optimizer.gradient_norm
        held = None if norm is None else norm.item()
        for what, value in (("loss", loss), ("gradient norm", 0.0 if held is None else held)):
            if not math.isfinite(value):
                raise InputError(f"step {self.step + 1}: the {what} is {value}, training cannot go on; use a lower "
                                 f"--lr than {self.plan.lr:g}, a longer --warmup or a --clip")
        self.intact = True
        tokens = sum(len(self.batches.items[i].ids) for batch in rows for row in batch for i in row)
        targets = sum(int((batch.labels != IGNORED).sum()) for batch in made)
        seconds = time.perf_counter() - began
        return StepReport(self.step + 1, self.epoch + 1, loss, rate, held, tokens, targets, seconds)

    # ------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """Where the run stands, and what must be equal for it to go on."""
        batches = self.batches
        return {
            "step": self.step,
            "position": {"epoch": self.epoch, "index": self.index},
            # what else is drawn at random, such as dropout, depends on the step's number
            "random": {"seed": batches.seed, "epoch": self.epoch},
            "data": {
                "digest": batches.examples.digest, "batch_size": batches.batch_size, "accumulate": batches.accumulate,
                "pack": batches.pack,
            },
            "evaluation": self.best.state(),
        }

    def save(self, folder: Path | str, settings: Mapping[str, Any] | None = None) -> Path:
        """A training checkpoint of the run as it is; ``settings`` are saved with it.

        Raises CheckpointError where it cannot be written, InputError where weights are not finite numbers: nothing is
        written or replaced then. PluginError where a callback fails, outside of the loop.
        """
        check_finite(self.optimizer.named_params, f"step {self.step}")
        metadata = self.state() | ({} if settings is None else {"settings": dict(settings)})
        saved = save_training_checkpoint(self.model, folder, self.optimizer, metadata)
        self._tell("on_checkpoint", saved)
        return saved

    def resume(self, folder: Path | str) -> None:
        """Restore weights, optimizer state and position.

        Raises CheckpointError for a folder that no run was saved in or whose files are damaged, InputError where data,
        seed, batches or optimizer are others. Both name the file and what is wrong in it.
        """
        folder = Path(folder)
        run = read_run(folder)
        where, held = shown_path(folder / RUN_FILE), run.get("training_metadata")
        step, epoch, index = self._position(held, where)
        best = Best.of((held or {}).get("evaluation"), step, where)
        restore(folder, self.model, self.optimizer, run)
        self.step, self.epoch, self.index, self.best, self.intact = step, epoch, index, best, True

    def _position(self, held: Any, where: str) -> tuple[int, int, int]:
        """Step, epoch and steps of that epoch from what ``state`` gave. Raises CheckpointError, InputError."""
        own = self.state()
        if not isinstance(held, dict) or not own.keys() - {"evaluation"} <= held.keys():
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
