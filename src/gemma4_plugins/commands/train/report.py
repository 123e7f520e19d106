"""What ``gemma4 train`` reports: progress, the log, samples, the loss curve, the summary."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemma4_core.checkpoint.atomic import append_line
from gemma4_core.cli.failures import escaped
from gemma4_core.cli.output import note, on_terminal, tell
from gemma4_core.devices.memory import peak_memory_bytes
from gemma4_core.formatting import human_bytes, three_digits
from gemma4_core.training.estimate import estimated
from gemma4_core.training.evaluate import perplexity
from gemma4_core.training.log import CsvLog, draw_curve

if TYPE_CHECKING:
    from gemma4_core.training.data.batches import Batches
    from gemma4_core.training.data.examples import Example
    from gemma4_core.training.estimate import Estimate
    from gemma4_core.training.evaluate import EvaluationReport
    from gemma4_core.training.optimizer import TrainingOptimizer
    from gemma4_core.training.run_folder import RunFolder
    from gemma4_core.training.trainer import StepReport, Trainer

SHOWN = 400
"""Characters of a sample that are shown."""
DRAW_SECONDS, DRAW_SHARE = 5.0, 0.02
"""Least time between two drawings of the curve, and the share of the run's time that drawing may take."""


class Reporter:
    """Logs steps and shows progress during a run."""

    def __init__(self, trainer: Trainer, folder: RunFolder, plotting: bool = False) -> None:
        """``plotting``: whether the loss curve is drawn again and again on the way."""
        self.trainer, self.folder, self.plotting = trainer, folder, plotting
        self.log: CsvLog | None = None
        self.bar: Any = None
        self.first: float | None = None
        self.last: StepReport | None = None
        self.validation: float | None = None
        self.tokens = self.targets = 0
        self.seconds = 0.0
        self.plot: Path | None = None
        self.next_plot = 0.0
        self.began = time.perf_counter()

    def __enter__(self) -> Reporter:
        self.log = CsvLog(self.folder.log, self.trainer.step)
        if on_terminal():
            note(self.trainer.optimizer.summary)
            self.bar = progress_bar(self.trainer.step, self.trainer.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.log is not None:
            self.log.__exit__(kind, fault, trace)

    def step(self, report: StepReport, evaluation: EvaluationReport | None) -> None:
        """Log a step and advance the progress bar. Raises CheckpointError where the log cannot be written."""
        self.first = report.loss if self.first is None else self.first
        self.last, self.validation = report, self.validation if evaluation is None else evaluation.loss
        self.tokens, self.targets = self.tokens + report.tokens, self.targets + report.targets
        self.seconds += report.seconds
        memory = peak_memory_bytes(self.trainer.model.device)
        rate = report.tokens / report.seconds
        row: dict[str, Any] = {**vars(report), "tokens_per_second": round(rate, 3), "memory_bytes": memory}
        row["seconds"] = round(report.seconds, 6)
        if evaluation is not None:
            row |= {"validation_loss": evaluation.loss, "perplexity": evaluation.perplexity}
        assert self.log is not None
        self.log.add(row)
        if self.plotting and time.monotonic() >= self.next_plot:
            self.draw_on_the_way()
        if self.bar is not None:
            held = f" val {self.validation:.4g}" if self.validation is not None else ""
            self.bar.set_postfix_str(f"loss {report.loss:.4g}{held} lr {report.lr:.3g} {rate:.0f} tok/s "
                                     f"{human_bytes(memory)}", refresh=False)
            self.bar.update(1)
        else:
            tell(f"step {report.step} of {self.trainer.total}: loss {three_digits(report.loss)}, {rate:.0f} tokens/s")

    def evaluated(self, evaluation: EvaluationReport) -> None:
        """Add an evaluation to the line of its step, which is logged already. Raises CheckpointError."""
        self.validation = evaluation.loss
        assert self.log is not None
        self.log.amend(evaluation.step, {"validation_loss": evaluation.loss, "perplexity": evaluation.perplexity})

    def draw_on_the_way(self) -> None:
        """Draw the curve, and say when the next time is. Where that fails it is not tried again: a picture is no
        reason to end a run."""
        began = time.monotonic()
        try:
            self.draw()
        except Exception as fault:
            self.plotting = False
            note(f"warning: the loss curve cannot be drawn any more: {escaped(str(fault))[:SHOWN]}")
        now = time.monotonic()
        self.next_plot = now + max(DRAW_SECONDS, (now - began) / DRAW_SHARE)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Write an answer to the samples file and show it on a terminal. Raises CheckpointError where that fails."""
        append_line(self.folder.samples, json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False))
        if on_terminal():
            shown = f"step {step}: {escaped(prompt)[:SHOWN]} -> {escaped(text)[:SHOWN]}"
            note(shown) if self.bar is None else self.bar.write(shown, file=self.bar.fp)

    def draw(self) -> None:
        """Draw the loss curve, where matplotlib is installed."""
        if draw_curve(self.folder.log, self.folder.curve):
            self.plot = self.folder.curve
        elif on_terminal():
            note(f"no loss curve: matplotlib is not installed (pip install matplotlib); the losses are in "
                 f"{self.folder.log}")

    def summary(self, optimizer: TrainingOptimizer, began: int, newest: Path) -> dict[str, Any]:
        """The object that ``--json`` prints. Its numbers are of this call, not of the run before it was resumed."""
        batches, last, best = self.trainer.batches, self.last, self.trainer.best
        kept = None if best.step is None else self.folder.step(best.step)
        return {
            "checkpoint": str(newest),
            "steps": self.trainer.step,
            "resumed_from": began or None,
            "epochs": last.epoch if last is not None else self.trainer.epoch,
            "first_loss": self.first,
            "loss": None if last is None else last.loss,
            "validation_loss": None if self.validation is None else finite(self.validation),
            "perplexity": None if self.validation is None else finite(perplexity(self.validation)),
            "best_validation_loss": best.loss,
            "best_step": best.step,
            "best_checkpoint": str(kept) if kept is not None and kept.is_dir() else None,
            "stopped_early": self.trainer.stopped_early,
            "examples": len(batches.items),
            "truncated": batches.examples.truncated,
            "dropped": batches.examples.dropped,
            "tokens": self.tokens,
            "targets": self.targets,
            "seconds": round(time.perf_counter() - self.began, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 3) if self.seconds else None,
            "captures": optimizer.shapes,
            "peak_memory_bytes": peak_memory_bytes(self.trainer.model.device),
            "optimizer": optimizer.name,
            "trained_parameters": sum(int(p.numel()) for p in optimizer.params),
            "frozen_parameters": sum(optimizer.frozen.values()),
            "log": str(self.folder.log),
            "plot": None if self.plot is None else str(self.plot),
        }


def finite(value: float) -> float | None:
    """A number as JSON takes it: None for NaN and infinities."""
    return value if math.isfinite(value) else None


def progress_bar(done: int, total: int) -> Any:
    """tqdm's progress bar; None where tqdm (a dependency of huggingface_hub) is absent."""
    import sys

    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm(total=total, initial=done, desc="training", unit="step", file=sys.stderr, dynamic_ncols=True)


def dry_report(values: Mapping[str, Any], batches: Batches, validation: Batches | None, trainer: Trainer) -> str:
    """The report of ``--dry-run``: counts, shapes, memory and seconds, and the first example with the learnt parts
    marked. Raises InputError where the run cannot fit."""
    examples = batches.examples
    facts = {
        "examples": len(examples.items), "truncated": examples.truncated, "dropped": examples.dropped,
        "tokens": examples.tokens, "targets": examples.targets, "steps": trainer.total,
        "validation_examples": 0 if validation is None else len(validation.items),
        "lengths": sorted({batches.make_length(rows) for step in batches.epoch(0) for rows in step}),
    }
    found = estimated(trainer)
    if values["as_json"]:
        sizes = ("weights", "gradients", "optimizer_state", "activations", "total", "free")
        facts |= {
            "memory_bytes": {name: getattr(found, name) for name in sizes},
            "first_step_seconds": round(found.first_seconds, 3),
            "new_length_seconds": round(found.length_seconds, 3), "step_seconds": round(found.step_seconds, 6),
            "timed_seconds_by_tokens": {size: round(time, 6) for size, time in found.timed.items()},
            "seconds": round(found.seconds, 3),
        }
        return json.dumps(facts) + "\n"
    lines = [f"{name.replace('_', ' '):20}{value}" for name, value in facts.items()]
    return "\n".join([*lines, *estimate_lines(found), "", *first_example(examples.items[0], batches)]) + "\n"


def estimate_lines(found: Estimate) -> list[str]:
    """What a run takes, and what that rests on."""
    held = {"weights": found.weights, "gradients": found.gradients, "optimizer state": found.optimizer_state,
            "activations of the largest step": found.activations}
    parts = ", ".join(f"{name} {'unknown' if size is None else human_bytes(size)}" for name, size in held.items())
    free = "" if found.free is None else f"; {human_bytes(found.free)} were free"
    timed = " and ".join(f"{three_digits(time)} s for {size} tokens" for size, time in sorted(found.timed.items()))
    seconds = (f"{three_digits(found.seconds)}: all steps, with {three_digits(found.first_seconds)} until the first is "
               f"done and {three_digits(found.length_seconds)} more for each other of {found.lengths} lengths (what "
               f"compiling took just now; it is kept); without evaluations, samples and checkpoints")
    facts = {
        "memory": f"{human_bytes(found.total)}: {parts}{free}; by planning the largest step",
        "seconds per step": f"{three_digits(found.step_seconds)}: steps timed just now took {timed}, with padding",
        "seconds": seconds,
    }
    return [f"{name:20}{text}" for name, text in facts.items()]


def first_example(item: Example, batches: Batches) -> list[str]:
    """The lines of an example, with the learnt parts between » and «."""
    tokenizer = batches.processor.tokenizer
    learnt = item.labels >= 0
    text, start = "", 0
    for end in range(1, len(item.ids) + 1):
        if end == len(item.ids) or learnt[end] != learnt[start]:
            piece = tokenizer.decode([int(token) for token in item.ids[start:end]])
            text += f"»{piece}«" if learnt[start] else piece
            start = end
    return [f"{item.where}, learnt between » and «:", *(escaped(line) for line in text[: 4 * SHOWN].splitlines())]
