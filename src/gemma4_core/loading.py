"""Assembling a model from a checkpoint folder and whatever plugins match it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.checkpoint.adapted import adapted
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.checkpoint.opening import Checkpoint, loaded_bytes, open_checkpoint, run_dtype
from gemma4_core.checkpoint.progress import progress
from gemma4_core.checkpoint.unserved import unserved_warning
from gemma4_core.config import GemmaConfig, GenerationConfig, expected_text_tensors, load_generation_config
from gemma4_core.contracts import Context, DeviceBackend, DeviceSettings, ModelTransform, Option, WeightSource
from gemma4_core.devices import activate, free_memory_bytes
from gemma4_core.errors import CheckpointError, Gemma4Warning, InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.generation.loaded_model import LoadedModel
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.ple import HostTable
from gemma4_core.ops import portable
from gemma4_core.plugins import registry
from gemma4_core.plugins.options import check_options, plugin_name
from gemma4_core.processing.modalities import order_towers, select_modalities
from gemma4_core.processing.processor import GemmaMultimodalProcessor
from gemma4_core.text import render_process
from gemma4_core.text.template import ChatTemplate
from gemma4_core.weights import Weight

RUN_DTYPES: dict[str, DType] = {"bfloat16": dtypes.bfloat16, "float32": dtypes.float32}
PLE_PLACES = ("auto", "device", "host", "disk")


def load_pretrained(
    folder_or_name: str | Path,
    device: str = "auto",
    format: str = "auto",
    tokenizer: str = "auto",
    modalities: Sequence[str] | None = None,
    dtype: str | None = None,
    max_context: int | None = None,
    *,
    ple: str = "auto",
    beam: int = 0,
    beam_seconds: float | None = None,
    options: Mapping[str, Any] | None = None,
    check: Callable[[GemmaMultimodalProcessor], None] | None = None,
) -> LoadedModel:
    """Open a checkpoint folder, a hub name or an alias, and assemble a model that runs on a device. The folder of an
    adapter stands for the base that it names with the adapter applied.

    ``modalities=("text",)`` skips the towers, None loads all that the config declares. ``dtype`` None is
    the type that config.json names, else the files' most common one (fp16 computes in bf16); ``"float32"`` computes in
    fp32. ``ple`` says where the per-layer embedding table stays. ``options``
    are values of the plugins' own options by keyword. ``check`` gets the folder's processor before weights are read,
    to look at a prompt; what it raises ends the loading. Raises a Gemma4Error before weights are read where config,
    files, plugins or device do not fit.
    """
    began = time.perf_counter()
    options = {} if options is None else options
    check_options(options, declared_options())
    check_values(ple, max_context)
    folder, options = with_base(folder_or_name, options)
    context = read_context(folder, plugin_name(format))
    template = ChatTemplate.load(context)
    if template is not None:
        render_process.start()  # it gets ready while plugins are imported
    backend_tokenizer = registry.select("tokenizer", context, plugin_name(tokenizer))
    assert context.config is not None
    generation = load_generation_config(context, context.config)
    with open_checkpoint(context, plugin_name(format)) as checkpoint:
        towers = select_modalities(checkpoint.towers, context, modalities)
        unserved = checkpoint.check(towers, modalities is not None)
        run = RUN_DTYPES[run_dtype(checkpoint.config, checkpoint.infos, dtype)]
        processor = GemmaMultimodalProcessor(context, towers, backend_tokenizer.load(context), template, options)
        transforms = wanted_transforms(context, options)
        if check is not None:
            check(processor)
        settings = DeviceSettings(beam) if beam_seconds is None else DeviceSettings(beam, beam_seconds)
        backend, target = activate(device, settings)
        model = assembled(checkpoint, processor, generation, unserved, backend, target, run, max_context, ple, options)
        for transform in transforms:
            apply_transform(model, transform, options)
    model.load_seconds = time.perf_counter() - began
    if unserved and modalities is None:
        warnings.warn(unserved_warning(unserved, context), Gemma4Warning, stacklevel=2)
    return model


def check_values(ple: str, max_context: int | None) -> None:
    """Raise InputError for an unknown ``ple``, and for a ``max_context`` below 1."""
    if ple not in PLE_PLACES:
        raise InputError(f"ple {shown(ple)}: choose one of {', '.join(PLE_PLACES)}")
    if max_context is not None and (
        isinstance(max_context, bool) or not isinstance(max_context, int) or max_context < 1
    ):
        raise InputError(f"max_context {shown(max_context)}: must be a whole number from 1")


def wanted_transforms(context: Context, options: Mapping[str, Any]) -> list[ModelTransform]:
    """The transforms that these options ask for, checked against the checkpoint."""
    wanted = [t for t in registry.matching("transform", context, options) if t.wanted(options, context)]
    for transform in wanted:
        if transform.check is not None:
            transform.check(context, options)
    return wanted


def assembled(
    checkpoint: Checkpoint, processor: GemmaMultimodalProcessor, generation_config: GenerationConfig,
    unserved: Sequence[str], backend: DeviceBackend, target: str, dtype: DType, max_context: int | None, ple: str,
    options: Mapping[str, Any],
) -> LoadedModel:
    """A model with its weights on the device ``target``, and the towers of its processor."""
    source, config, context = checkpoint.weights, checkpoint.config, checkpoint.context
    host = _host_table(source, config, target, dtype, ple)
    places, tensors = read_text(source, config, target, dtype, skip_ple=host is not None)
    operations = backend.operations() if backend.operations else portable()
    model = LoadedModel(
        context, target, dtype, operations, places, tensors, max_context=max_context, ple_host=host,
        known_specs=source.towers, stored_names=source.renamed, unserved=unserved, tokenizer=processor.tokenizer.inner,
        template=processor.template, processor=processor, generation_config=generation_config,
        options=options, format_name=checkpoint.format.name, device_name=backend.name,
    )
    for spec in order_towers(processor.specs):
        model.add_tower(spec, spec.build(model, source))
    return model


def with_base(name: str | Path, options: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    """The checkpoint folder of a name, with the plugins' options. An adapter's folder stands for its base with the
    adapter applied. Raises CheckpointError where that names no base, or one that is not here."""
    found = adapted(name)
    if found is None or found.base is None:
        return resolve_folder(name), options
    try:
        return resolve_folder(found.base), found.merged(options)
    except CheckpointError as fault:
        raise CheckpointError(f"{shown_path(name)} is made for another checkpoint: {fault}; give another one so: "
                              f"{replace(found, base=None).arguments}") from fault


def apply_transform(model: GemmaModel, transform: ModelTransform, options: Mapping[str, Any]) -> None:
    """Change a model, and note which part of it then trains. Raises PluginError where two transforms bring one."""
    model.transformed = True
    transform.apply(model, options)
    part = transform.trained_part(model, options) if transform.trained_part is not None else None
    if part is not None:
        model.train_only(part, transform.name)


def declared_options() -> list[Option]:
    """What modalities and transforms, whichever are installed, take in ``options``."""
    towers = [option for tower in registry.modalities.values() for option in tower.options]
    return towers + [option for transform in registry.transforms.values() for option in transform.options]


def read_text(
    source: WeightSource, config: GemmaConfig, device: str, dtype: DType, skip_ple: bool = False
) -> tuple[dict[str, Weight], dict[str, Tensor]]:
    """Bring the text model's weights to the device one by one, with a progress bar."""
    places: dict[str, Weight] = {}
    tensors: dict[str, Tensor] = {}
    table = config.text_prefix + "embed_tokens_per_layer.weight"
    expected = {n: s for n, s in expected_text_tensors(config).items() if not (skip_ple and n == table)}
    total = sum(source.infos[name].nbytes for name in expected)
    with progress(total, "loading", "B") as bar:
        for name, shape in expected.items():
            if len(shape) == 2:
                places[name] = Weight(name, source.matrix(name, device, dtype))
            elif len(shape) == 3:
                places[name] = Weight(name, source.stack(name, device, dtype))
            else:
                tensors[name] = source.tensor(name, device, dtype)
            bar.update(source.infos[name].nbytes)
    return places, tensors


def _host_table(source: WeightSource, config: GemmaConfig, device: str, dtype: DType, ple: str) -> HostTable | None:
    """The per-layer embedding table off the device where ``ple`` says so, or where it would not fit."""
    name = config.text_prefix + "embed_tokens_per_layer.weight"
    if not config.text_config.hidden_size_per_layer_input or ple == "device":
        return None
    if ple == "auto" and not _too_large(source, device, dtype):
        return None
    read = source.row_reader(name, in_memory=ple == "host")
    return HostTable(read, device, dtype)


def _too_large(source: WeightSource, device: str, dtype: DType) -> bool:
    """Whether the whole model with a tenth of slack exceeds the device's free memory (unknown: no)."""
    free = free_memory_bytes(device)
    need = sum(loaded_bytes(info, dtype.itemsize) for info in source.infos.values())
    return free is not None and need * 1.1 > free
