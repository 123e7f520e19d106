"""A run of ``gemma4 train``: check everything, load the model, train."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.output import note, write
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.errors import Gemma4Error, InputError, PluginError
from gemma4_core.formatting import shown
from gemma4_core.training.data.dataset_folders import held_out_source
from gemma4_core.training.data.examples import LONGEST, Encoding, Examples, modalities_of, read_examples
from gemma4_core.training.data.records import Record, read_records
from gemma4_core.training.run_folder import RunFolder
from gemma4_plugins.commands.model_loading import Loading
from gemma4_plugins.commands.train.report import dry_report
from gemma4_plugins.commands.train.session import Session, trainer_of

if TYPE_CHECKING:
    from gemma4_core.contracts import TrainingCallback
    from gemma4_core.processing.processor import GemmaMultimodalProcessor
    from gemma4_core.training.data.batches import Batches
    from gemma4_core.training.trainer import Plan


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
    check_plot(values)
    data = Data.read(values)
    folder = None if values["dry_run"] else RunFolder(values["output_dir"])
    start = folder.newest() if folder is not None and values["resume"] else None
    asked = {name: values[name] for name in Loading.__dataclass_fields__ if name in values}
    loading = Loading(**asked | {"modality": values["modality"] or ("text", *used_modalities(data))})

    callbacks: list[TrainingCallback] = []
    told = callback_values(plugins)

    def check(processor: GemmaMultimodalProcessor) -> None:
        data.encode(values, processor)
        check_choices(values, plugins, processor)
        check_memory(values, processor)
        plan_of(values, data)
        callbacks.extend(built_callbacks(values["callback"], told, processor))
        if folder is not None:
            folder.start(settings, values["resume"])

    from tinygrad import Tensor

    # random initial values, such as those of adapters, are then the same in every run
    Tensor.manual_seed(values["seed"])
    model = loading.load(plugins, check)
    assert data.batches is not None
    plan = plan_of(values, data)
    if folder is None:
        write(dry_report(values, data.batches, data.validation, trainer_of(values, model, data.batches, plan)))
    else:
        Session(values, (data.batches, data.validation), plan, folder, model, start, callbacks).run()


def check_plot(values: Mapping[str, Any]) -> None:
    """Raise InputError for ``--plot`` where matplotlib is not installed."""
    if values["plot"] and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot: matplotlib is not installed; install it with: pip install matplotlib")


def check_memory(values: Mapping[str, Any], processor: GemmaMultimodalProcessor) -> None:
    """Raise InputError for a ``--max-memory`` that the weights alone exceed."""
    from gemma4_core.checkpoint.opening import loaded_bytes, run_dtype

    context = processor.context
    if values["max_memory"] is None or context.config is None:
        return
    dtype = None if values["dtype"] in (None, "auto") else values["dtype"]
    itemsize = 4 if run_dtype(context.config, context.tensors, dtype) == "float32" else 2
    weights = sum(loaded_bytes(info, itemsize) for info in context.tensors.values())
    if weights > values["max_memory"] * 1e9:
        raise InputError(f"--max-memory {values['max_memory']:g}: the weights alone take {weights / 1e9:.3g} GB; give "
                         f"more, or train an adapter beside a quantised model")


def callback_values(plugins: PluginValues) -> dict[str, Any]:
    """The values of callbacks' options, taken out of those that go to the model."""
    from gemma4_core.plugins import registry

    own = {option.keyword for backend in registry.callbacks.values() for option in backend.options}
    return {keyword: plugins.options.pop(keyword) for keyword in own if keyword in plugins.options}


def built_callbacks(
    names: Sequence[str], values: Mapping[str, Any], processor: GemmaMultimodalProcessor
) -> list[TrainingCallback]:
    """The callbacks of these names. Raises PluginError for an unknown one and for one that cannot be built."""
    from gemma4_core.plugins import registry
    from gemma4_core.plugins.origin import describe
    from gemma4_core.training.callbacks import Callbacks

    built = []
    for name in dict.fromkeys(names):
        backend = registry.select("callback", processor.context, name)
        wanted = {option.keyword: values.get(option.keyword, option.default) for option in backend.options}
        try:
            callback = backend.build(wanted)
            if not getattr(callback, "name", None):
                callback.name = backend.name
            Callbacks([callback])
        except Gemma4Error as fault:
            raise type(fault)(f"--callback {backend.name}: {fault}") from fault
        except Exception as fault:
            raise PluginError(f"--callback {backend.name}: cannot be built: {describe(fault)}") from fault
        built.append(callback)
    return built


def used_modalities(data: Data) -> list[str]:
    """Modalities whose media the data names; other towers are not loaded."""
    from gemma4_core.plugins import registry

    return modalities_of([*data.records, *data.held_out], list(registry.modalities.values()))


def plan_of(values: Mapping[str, Any], data: Data) -> Plan:
    """The plan of the run. Raises InputError for a warm-up that is longer."""
    from gemma4_core.training.trainer import Plan

    assert data.batches is not None
    names = ("lr", "steps", "epochs", "schedule", "warmup", "clip", "early_stop", "min_delta")
    plan = Plan(checkpointing=values["gradient_checkpointing"], **{name: values[name] for name in names})
    total = plan.steps if plan.steps is not None else data.batches.steps(plan.epochs)
    if plan.warmup > total:
        raise InputError(f"--warmup {plan.warmup}: the run has only {total} steps")
    return plan


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
