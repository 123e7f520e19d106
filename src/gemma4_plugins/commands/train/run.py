"""A run of ``gemma4 train``: check everything, load the model, train."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.interrupt import Interrupt
from gemma4_core.cli.output import json_text, note, write
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.training.data.dataset_folders import held_out_source
from gemma4_core.training.data.examples import LONGEST, Encoding, Examples, modalities_of, read_examples
from gemma4_core.training.data.records import Record, read_records
from gemma4_core.training.run_folder import RunFolder
from gemma4_plugins.commands.model_loading import Loading
from gemma4_plugins.commands.train.report import Reporter, dry_report

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.processing.processor import GemmaMultimodalProcessor
    from gemma4_core.training.batch import GemmaTrainingBatch
    from gemma4_core.training.data.batches import Batches
    from gemma4_core.training.trainer import Plan, StepReport, Trainer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a run and save it: Ctrl-C, the scheduler's SIGTERM, and the loss of the terminal."""
HINT = "finishing this step, then saving; press Ctrl-C again to stop at once without saving"


class DryRun(Exception):
    """Ends the loading of a dry run once everything is checked."""


@dataclass
class Data:
    """The training and validation data of a run."""

    records: list[Record]
    held_out: list[Record]
    """Validation rows of their own; empty where validation is a share of the data, or absent."""
    share: float | None
    batches: Batches | None = None
    validation: Batches | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Data:
        """Read the files. Raises InputError naming file and row."""
        given, path, columns = values["validation"], values["data"], values["columns"]
        records, held_out = read_records(path, columns, values["split"]), []
        if isinstance(given, Path):
            place, split = held_out_source(path, values["split"], given)
            held_out = read_records(place, columns, split, "validation")
        return cls(records, held_out, given if isinstance(given, float) else None)

    def encode(self, values: Mapping[str, Any], processor: GemmaMultimodalProcessor) -> None:
        """Encode the rows and make batches. Raises InputError naming file and row."""
        from gemma4_core.training.data.batches import Batches

        encoding = encoding_of(values, processor)
        examples = read_examples(values["data"], processor, encoding, self.records)
        held: Examples | None = None
        if self.held_out:
            held = read_examples(values["validation"], processor, encoding, self.held_out)
        elif self.share is not None:
            examples, held = examples.split(self.share, values["seed"])
        note_ignored([examples] if held is None else [examples, held])
        shape = {name: values[name] for name in ("batch_size", "pack", "seed")}
        self.batches = Batches(examples, processor, accumulate=values["accumulate"], **shape)
        self.validation = None if held is None else Batches(held, processor, **shape)


def note_ignored(read: Sequence[Examples]) -> None:
    """Print one warning about keys in the data that nothing reads."""
    ignored: Counter[str] = Counter()
    for examples in read:
        ignored.update(examples.ignored)
    if ignored:
        named = [f"{shown(key)} ({count} {'line' if count == 1 else 'lines'})" for key, count in ignored.items()]
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        note(f"warning: unknown keys in the data are ignored: {', '.join(named[:8])}{more}")


def encoding_of(values: Mapping[str, Any], processor: GemmaMultimodalProcessor) -> Encoding:
    """The settings of encoding. Raises InputError for a length limit beyond ``--context``."""
    assert processor.context.config is not None
    longest = processor.context.config.text_config.max_position_embeddings
    asked, context = values["max_length"], min(values["context"] or longest, longest)
    if asked is not None and asked > context:
        raise InputError(f"--max-length {asked} is longer than the context of {context}")
    names = ("overlong", "mask_prompt", "raw", "thinking")
    return Encoding(asked or min(LONGEST, context), **{name: values[name] for name in names})


def run(values: dict[str, Any], plugins: PluginValues, settings: dict[str, Any]) -> None:
    """Train. Raises a Gemma4Error, where possible before weights are read."""
    data = Data.read(values)
    folder = None if values["dry_run"] else RunFolder(values["output_dir"])
    start = folder.newest() if folder is not None and values["resume"] else None
    asked = {name: values[name] for name in Loading.__dataclass_fields__ if name in values}
    loading = Loading(**asked | {"modality": values["modality"] or ("text", *used_modalities(data))})

    def check(processor: GemmaMultimodalProcessor) -> None:
        data.encode(values, processor)
        check_choices(values, plugins, processor)
        plan_of(values, data)
        if folder is None:
            raise DryRun
        folder.start(settings, values["resume"])

    from tinygrad import Tensor

    # random initial values, such as those of adapters, are then the same in every run
    Tensor.manual_seed(values["seed"])
    try:
        model = loading.load(plugins, check)
    except DryRun:
        write(dry_report(values, data.batches, data.validation, plan_of(values, data)[1]))
        return
    assert folder is not None
    Session(values, data, folder, model, start).run()


def used_modalities(data: Data) -> list[str]:
    """Modalities whose media the data names; other towers are not loaded."""
    from gemma4_core.plugins import registry

    return modalities_of([*data.records, *data.held_out], list(registry.modalities.values()))


def plan_of(values: Mapping[str, Any], data: Data) -> tuple[Plan, int]:
    """The plan of the run and its number of steps. Raises InputError for a warm-up that is longer."""
    from gemma4_core.training.trainer import Plan

    assert data.batches is not None
    names = ("lr", "steps", "epochs", "schedule", "warmup", "clip")
    plan = Plan(checkpointing=values["gradient_checkpointing"], **{name: values[name] for name in names})
    total = plan.steps if plan.steps is not None else data.batches.steps(plan.epochs)
    if plan.warmup > total:
        raise InputError(f"--warmup {plan.warmup}: the run has only {total} steps")
    return plan, total


def check_choices(values: Mapping[str, Any], plugins: PluginValues, processor: GemmaMultimodalProcessor) -> None:
    """Check the optimizer's name, its options and the patterns of tensors. Raises PluginError and InputError.

    Patterns are not checked where a transform decides what trains: its tensors exist only once it is applied.
    """
    import math

    from gemma4_core.config import expected_text_tensors
    from gemma4_core.plugins import registry
    from gemma4_core.training.optimizer import check_options, choose

    context = processor.context
    assert context.config is not None
    check_options(registry.select("optimizer", context, values["optimizer"]), values["optimizer_options"])
    transforms = registry.matching("transform", context, plugins.options)
    if any(t.trained_part is not None and t.wanted(plugins.options, context) for t in transforms):
        return
    shapes = dict(expected_text_tensors(context.config))
    for spec in processor.specs:
        shapes |= spec.tensors(context.config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    choose(sizes, list(values["trainable"]) or None, list(values["frozen"]) or None)


class Session:
    """The training of a loaded model, with its log and checkpoints."""

    def __init__(
        self, values: Mapping[str, Any], data: Data, folder: RunFolder, model: LoadedModel, start: Path | None
    ) -> None:
        from gemma4_core.training.evaluate import Evaluator
        from gemma4_core.training.optimizer import build_optimizer
        from gemma4_core.training.trainer import Trainer

        assert data.batches is not None
        self.values, self.data, self.folder, self.model = values, data, folder, model
        self.optimizer = build_optimizer(
            model, values["optimizer"], values["lr"], values["weight_decay"], list(values["trainable"]) or None,
            list(values["frozen"]) or None, **values["optimizer_options"],
        )
        self.trainer: Trainer = Trainer(model, self.optimizer, data.batches, plan_of(values, data)[0])
        if start is not None:
            self.trainer.resume(start)
        self.began = self.saved = self.trainer.step
        self.evaluator = Evaluator(model)

    def run(self) -> None:
        """Train to the end, or until one of ``SIGNALS``: the run is then saved and the program ends."""
        reporter = Reporter(self.trainer, self.folder)
        with Interrupt(HINT, SIGNALS) as interrupt, reporter:
            for report in self.trainer:
                self.after(report, reporter, interrupt)
                if interrupt.asked:
                    break
            if self.saved != self.trainer.step:
                self.save()
        if interrupt.asked:
            command = f"gemma4 train --output-dir {shlex.quote(str(self.folder.path))} --resume"
            note(f"stopped after step {self.trainer.step} of {self.trainer.total}, saved in "
                 f"{self.folder.step(self.saved)}; continue with: {command}")
            raise interrupt.ending(interrupt.number)
        newest = self.folder.newest()
        reporter.draw()
        if self.values["as_json"]:
            write(json_text(reporter.summary(self.optimizer, self.began, newest)) + "\n")
        else:
            write(f"{newest}\n")

    def save(self) -> None:
        """Write a checkpoint and remove those that are too old to keep."""
        step = self.trainer.step
        self.trainer.save(self.folder.step(step))
        self.folder.saved(step, self.values["keep_last"])
        self.saved = step

    def after(self, report: StepReport, reporter: Reporter, interrupt: Interrupt) -> None:
        """Do what is due after a step: validation loss, log, samples, checkpoint.

        A run that was interrupted skips validation and samples.
        """
        end = report.step == self.trainer.total
        due = lambda name: end or bool(self.values[name] and report.step % self.values[name] == 0)  # noqa: E731
        loss = None
        if self.data.validation is not None and due("eval_every") and not interrupt.asked:
            loss = self.validation_loss(self.data.validation, interrupt)
        reporter.step(report, loss)
        if self.values["sample_prompt"] and due("sample_every") and not interrupt.asked:
            for prompt in self.values["sample_prompt"]:
                reporter.sample(report.step, prompt, self.answer(prompt))
        if self.values["save_every"] and report.step % self.values["save_every"] == 0:
            self.save()

    def validation_loss(self, held: Batches, interrupt: Interrupt) -> float | None:
        """The mean loss; None where the run is interrupted meanwhile."""

        def batches() -> Iterator[GemmaTrainingBatch]:
            for rows in held.order():
                if interrupt.asked:
                    return
                yield held.make(rows)

        loss = self.evaluator.loss(batches())
        return None if interrupt.asked else loss

    def answer(self, prompt: str) -> str:
        """The model's greedy answer at this step."""
        raw = self.model.template is None or self.values["raw"]
        asked: Any = prompt if raw else [{"role": "user", "content": prompt}]
        parts = self.model.stream_generate(asked, max_new_tokens=self.values["sample_tokens"])
        return "".join(part.text for part in parts if part.kind == "text")

