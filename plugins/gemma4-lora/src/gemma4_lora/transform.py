"""What the options of the transform do to a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor

from gemma4_core import CheckpointError, Context, InputError, TrainedPart
from gemma4_core.formatting import shown, shown_path
from gemma4_core.ops import Dropout, upload
from gemma4_lora.adapters import Adapter, Adapters
from gemma4_lora.files import AdapterFiles, check_adapter, read_adapter, write_adapter
from gemma4_lora.fresh import SEED, check_dropout, fresh_adapter, plan_adapter
from gemma4_lora.names import adaptable

if TYPE_CHECKING:
    from gemma4_core import GemmaModel

TRAINED = "lora"
"""The name of the adapter that trains."""
NEW = ("lora_rank", "lora_alpha", "lora_targets", "lora_init", "lora_seed", "lora_rslora")
"""Options that describe a new adapter."""
DROPOUT = "lora_dropout"


def folders(values: Mapping[str, Any]) -> list[Path]:
    """The adapter folders that were given; a single one may be given as text."""
    given = values.get("adapter") or ()
    return [Path(item) for item in ([given] if isinstance(given, str | os.PathLike) else given)]


def check(context: Context, values: Mapping[str, Any]) -> None:
    """Refuse options that ``apply`` could not use, before weights are read. Raises InputError, CheckpointError."""
    assert context.config is not None
    given = folders(values)
    training, new = bool(values.get("lora")), [key for key in NEW if values.get(key) not in (None, (), [], False)]
    if not training and (alone := [*new, *(key for key in (DROPOUT,) if values.get(key) is not None)]):
        raise InputError(f"{flag(alone[0])} {shown(values[alone[0]])} needs --lora, which trains an adapter")
    if training and given and new:
        raise InputError(f"{flag(new[0])} {shown(values[new[0]])} describes a new adapter, but --adapter "
                         f"{shown_path(given[0])} is to be trained further; give one of them")
    if training and len(given) > 1:
        raise InputError(f"--lora trains one adapter, {len(given)} were given (--adapter {shown_path(given[1])})")
    unused = [key for key in ("adapter_strength", "adapter_mode") if values.get(key) is not None]
    if unused and (training or not given):
        raise InputError(f"{flag(unused[0])} {shown(values[unused[0]])} needs an --adapter to apply")
    for folder in given:
        check_adapter(folder, context.config)
    if values.get(DROPOUT) is not None:
        check_dropout(values[DROPOUT], {})
    if training and not given:
        plan_adapter(adaptable(context.config), context.config.text_prefix, **described(values))


def flag(key: str) -> str:
    """An option as it is typed."""
    return "--" + key.replace("_", "-")


def described(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a new adapter, as arguments of ``fresh_adapter``."""
    keys = {"lora_rank": "rank", "lora_alpha": "alpha", "lora_init": "init", "lora_seed": "seed", DROPOUT: "dropout"}
    given = {word: values[key] for key, word in keys.items() if values.get(key) is not None}
    targets = values.get("lora_targets") or ()
    return given | {"targets": [targets] if isinstance(targets, str) else list(targets),
                    "use_rslora": bool(values.get("lora_rslora"))}


def new_adapter(model: GemmaModel, places: Iterable[str], values: Mapping[str, Any]) -> AdapterFiles:
    """The new adapter that the options describe, over the model's matrices."""
    there, path = set(places), model.context.path
    shapes = {name: shape for name, shape in adaptable(model.config).items() if name in there}
    base = None if path is None else str(path)
    return fresh_adapter(shapes, model.config.text_prefix, base_model=base, **described(values))


def apply(model: GemmaModel, values: Mapping[str, Any]) -> None:
    """Apply the adapters given, or put one beside the model that is to train. Raises InputError, CheckpointError."""
    check(model.context, values)
    adapters, given = Adapters.of(model), folders(values)
    if values.get("lora"):
        files = read_adapter(given[0], model.config) if given else new_adapter(model, adapters.places, values)
        with_dropout(adapters.add(TRAINED, files), values)
        adapters.activate(TRAINED, mode="beside")
        return
    names: list[str] = []
    for folder in given:
        # the same folder twice counts twice, as it does for fuse
        names.append(str(folder) if str(folder) not in names else f"{folder} ({len(names) + 1})")
        if names[-1] not in adapters.loaded:
            adapters.load(names[-1], folder)
    strength = values.get("adapter_strength")
    adapters.activate(*names, strength=1.0 if strength is None else strength, mode=values.get("adapter_mode") or "auto")


def with_dropout(adapter: Adapter, values: Mapping[str, Any]) -> None:
    """Give an adapter that trains the dropout that is asked for, else its own. Raises InputError where it can have
    none."""
    asked = values.get(DROPOUT)
    p = adapter.config.lora_dropout if asked is None else asked
    check_dropout(p, {name: tuple(change.b.shape) for name, change in adapter.changes.items()})
    adapter.config = replace(adapter.config, lora_dropout=float(p))
    if p:
        step = Dropout.counter(str(next(iter(adapter.changes.values())).a.device))
        adapter.changes = {name: replace(change, dropout=Dropout.of(p, step, name))
                           for name, change in adapter.changes.items()}


def trained_part(model: GemmaModel, values: Mapping[str, Any]) -> TrainedPart | None:
    """The adapter as the part of the model that trains, if one is to train."""
    if not values.get("lora"):
        return None
    adapter, config = Adapters.of(model).loaded[TRAINED], model.config
    dropout = next(iter(adapter.changes.values())).dropout
    seed = SEED if values.get("lora_seed") is None else values["lora_seed"]
    return TrainedPart(
        tensors=tensors_of(adapter),
        save=lambda folder: write_adapter(folder, adapter.files),
        load=lambda folder: take(adapter, read_adapter(folder, config), folder),
        begin=None if dropout is None else partial(Dropout.begin, dropout.step, seed),
    )


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """An adapter's factors under their names in the model."""
    return {
        name + suffix: tensor for name, change in adapter.changes.items()
        for suffix, tensor in ((".lora_A", change.a), (".lora_B", change.b))
    }  # fmt: skip


def take(adapter: Adapter, files: AdapterFiles, folder: Path) -> None:
    """Write saved factors into an adapter's tensors. Raises CheckpointError if they belong to another adapter."""
    own = {name: (tuple(c.a.shape), tuple(c.b.shape), c.scale) for name, c in adapter.changes.items()}
    saved = {name: (p.a.shape, p.b.shape, p.scale) for name, p in files.pairs.items()}
    odd: Sequence[str] = [name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name)]
    if odd:
        raise CheckpointError(f"{shown_path(folder)}: its adapter differs in {len(odd)} matrices from the one "
                              f"that trains, such as {shown(min(odd))}; give the options of the run that wrote it")
    for name, change in adapter.changes.items():
        for tensor, array in ((change.a, files.pairs[name].a), (change.b, files.pairs[name].b)):
            tensor.assign(upload(array, str(tensor.device))).realize()
