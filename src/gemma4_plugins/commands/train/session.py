"""The training of a loaded model: steps, evaluations, checkpoints, and how it goes on after what stops it."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.interrupt import Interrupt
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.errors import Gemma4Error
from gemma4_core.formatting import three_digits
from gemma4_core.training.run_folder import BEST, RunFolder
from gemma4_plugins.commands.train.report import Reporter

if TYPE_CHECKING:
    from gemma4_core.contracts import TrainingCallback
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.training.data.batches import Batches
    from gemma4_core.training.evaluate import EvaluationReport
    from gemma4_core.training.trainer import Plan, StepReport, Trainer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a run and save it: Ctrl-C, the scheduler's SIGTERM, and the loss of the terminal."""
HINT = "finishing this step, then saving; press Ctrl-C again to stop at once without saving"


def trainer_of(
    values: Mapping[str, Any], model: LoadedModel, batches: Batches, plan: Plan,
    callbacks: Sequence[TrainingCallback] = (), folder: Path | None = None,
) -> Trainer:  # fmt: skip
    """The trainer that the options describe. Raises a Gemma4Error where they do not fit the model, or the memory."""
    from gemma4_core.training.estimate import check_state_fits
    from gemma4_core.training.optimizer import build_optimizer
    from gemma4_core.training.trainer import Trainer

    trainable, frozen = list(values["trainable"]) or None, list(values["frozen"]) or None
    limit = None if values["max_memory"] is None else int(values["max_memory"] * 1e9)
    check_state_fits(model, values["optimizer"], values["optimizer_options"], trainable, frozen,
                     batches.accumulate > 1, limit)
    optimizer = build_optimizer(model, values["optimizer"], values["lr"], values["weight_decay"], trainable, frozen,
                                **values["optimizer_options"])
    optimizer.memory_limit = limit
    return Trainer(model, optimizer, batches, plan, callbacks, folder)


class Session:
    """The training of a loaded model, with its log and checkpoints."""

    def __init__(
        self, values: Mapping[str, Any], batches: tuple[Batches, Batches | None], plan: Plan, folder: RunFolder,
        model: LoadedModel, start: Path | None, callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        """``batches``: of examples to learn from, and of those to validate on; ``start``: the checkpoint that the run
        goes on from. Raises a Gemma4Error for options that do not fit the model."""
        self.values, self.folder, self.model, self.validation = values, folder, model, batches[1]
        self.trainer = trainer_of(values, model, batches[0], plan, callbacks, folder.path)
        self.optimizer = self.trainer.optimizer
        self.trainer.callbacks.warn = lambda text: note(f"warning: {text}")
        if start is not None:
            self.trainer.resume(start)
        self.began = self.saved = self.trainer.step
        self.pruned = True
        """Whether old checkpoints were removed since the last one was saved."""

    @property
    def best(self) -> int | None:
        """The step whose checkpoint is kept for its validation loss."""
        return self.trainer.best.step if self.values["keep_best"] else None

    @property
    def command(self) -> str:
        """The command line that goes on with the run."""
        return f"gemma4 train --output-dir {shlex.quote(str(self.folder.path))} --resume"

    def run(self) -> None:
        """Train to the end, or until one of ``SIGNALS``: the run is then saved and the program ends. Raises a
        Gemma4Error that says how to go on."""
        reporter = Reporter(self.trainer, self.folder, self.values["plot"])
        # what a callback prints must not get into the answer
        with Interrupt(HINT, SIGNALS) as interrupt, contextlib.redirect_stdout(sys.stderr), reporter, self.trainer:
            try:
                self.train(reporter, interrupt)
            except Gemma4Error as fault:
                fault.args = (f"{fault}; {self.rescued()}", *fault.args[1:])
                raise
        if interrupt.asked:
            note(f"stopped after step {self.trainer.step} of {self.trainer.total}, saved in "
                 f"{self.folder.step(self.saved)}; continue with: {self.command}")
            raise interrupt.ending(interrupt.number)
        newest = self.folder.newest()
        reporter.draw()
        if on_terminal():
            self.tell_the_end()
        if self.values["as_json"]:
            write(json_text(reporter.summary(self.optimizer, self.began, newest)) + "\n")
        else:
            write(f"{newest}\n")

    def train(self, reporter: Reporter, interrupt: Interrupt) -> None:
        """Do the steps that are left, with what is due after each. Raises InputError where they cannot fit."""
        from gemma4_core.training.estimate import check_largest

        check_largest(self.trainer)
        if self.began:
            self.folder.mark(self.began, self.best)
            self.catch_up(reporter, interrupt)
        for report in self.trainer:
            self.after(report, reporter, interrupt)
            if interrupt.asked:
                break
        if self.saved != self.trainer.step:
            self.save()
        self.prune()

    def rescued(self) -> str:
        """Save what a fault would lose, where it can be saved, and say how to go on."""
        if self.trainer.intact and self.saved != self.trainer.step:
            with contextlib.suppress(Gemma4Error):
                self.save()
        found = self.folder.checkpoints()
        if not found:
            return "nothing was saved"
        name = found[-1][1].name
        if self.trainer.intact and found[-1][0] == self.trainer.step:
            return f"{name} is saved, continue with: {self.command}"
        # a step that went wrong right behind a checkpoint: that one may have gone wrong already
        other = found[-2][1].name if len(found) > 1 and found[-1][0] == self.trainer.step else None
        doubt = f" (remove {name} to go on from {other})" if other else ""
        return f"the last good checkpoint is {name}{doubt}, continue with: {self.command}"

    def tell_the_end(self) -> None:
        """Say why the run ended and which checkpoint is the best, at a terminal."""
        best = self.trainer.best
        if self.trainer.stopped_early:
            note(f"stopped at step {self.trainer.step} of {self.trainer.total}: {best.stale} evaluations in a row "
                 f"without a lower validation loss")
        if best.loss is not None and self.best is not None:
            note(f"lowest validation loss {three_digits(best.loss)} at step {best.step}, kept in "
                 f"{self.folder.path / BEST}")

    def save(self) -> None:
        """Write a checkpoint. Those that are too old to keep go once the next loss is known to be a number."""
        step = self.trainer.step
        self.trainer.save(self.folder.step(step))
        self.saved, self.pruned = step, False
        self.folder.mark(step, self.best)

    def prune(self) -> None:
        """Remove checkpoints that are too old to keep."""
        if not self.pruned:
            self.folder.prune(self.values["keep_last"], self.best)
            self.pruned = True

    def due(self, name: str) -> bool:
        """Whether something that an option such as ``eval_every`` asks for is due after this step."""
        return bool(self.values[name]) and self.trainer.step % self.values[name] == 0

    def after(self, report: StepReport, reporter: Reporter, interrupt: Interrupt) -> None:
        """Do what is due after a step: validation loss, log, samples, checkpoint.

        A run that was interrupted skips validation and samples.
        """
        self.prune()
        evaluation = None
        if self.validation is not None and (self.trainer.ending or self.due("eval_every")) and not interrupt.asked:
            evaluation = self.evaluate(self.validation, interrupt)
        reporter.step(report, evaluation)
        wanted = self.values["sample_prompt"] and (self.trainer.ending or self.due("sample_every"))
        if wanted and not interrupt.asked:
            for prompt in self.values["sample_prompt"]:
                reporter.sample(report.step, prompt, self.answer(prompt))
        if self.due("save_every") or (evaluation is not None and self.best == report.step):
            self.save()

    def evaluate(self, held: Batches, interrupt: Interrupt) -> EvaluationReport | None:
        """The validation loss; None where the run is interrupted meanwhile."""
        return self.trainer.evaluate(held, lambda: interrupt.asked)

    def catch_up(self, reporter: Reporter, interrupt: Interrupt) -> None:
        """Measure what the interrupted step has left out, so that the run goes on as if it had not stopped."""
        trainer = self.trainer
        missed = (self.due("eval_every") or trainer.step >= trainer.total) and trainer.best.evaluated != trainer.step
        if self.validation is not None and missed:
            evaluation = self.evaluate(self.validation, interrupt)
            if evaluation is not None:
                reporter.evaluated(evaluation)
                self.folder.mark(self.trainer.step, self.best)

    def answer(self, prompt: str) -> str:
        """The model's greedy answer at this step."""
        raw = self.model.template is None or self.values["raw"]
        asked: Any = prompt if raw else [{"role": "user", "content": prompt}]
        parts = self.model.stream_generate(asked, max_new_tokens=self.values["sample_tokens"])
        return "".join(part.text for part in parts if part.kind == "text")
