"""Low-rank adapters (LoRA) for tinygrad-gemma4: train, load, switch and fuse them, in the file format of peft.

    from gemma4_lora import Adapters
    adapters = Adapters.of(model)
    adapters.load("poet", "adapters/poet")
    adapters.activate("poet")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gemma4_core import ModelTransform, Option, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gemma4_core import Context, GemmaModel, TrainedPart
    from gemma4_lora.adapters import Adapters
    from gemma4_lora.files import read_adapter, save_adapter
    from gemma4_lora.fresh import fresh_adapter
    from gemma4_lora.fusing import fuse

__all__ = ["Adapters", "fresh_adapter", "fuse", "read_adapter", "save_adapter"]

_HOME = {
    "Adapters": "adapters",
    "fresh_adapter": "fresh",
    "fuse": "fusing",
    "read_adapter": "files",
    "save_adapter": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def _check(context: Context, values: Mapping[str, Any]) -> None:
    from gemma4_lora.transform import check

    check(context, values)


def _apply(model: GemmaModel, values: Mapping[str, Any]) -> None:
    from gemma4_lora.transform import apply

    apply(model, values)


def _trained_part(model: GemmaModel, values: Mapping[str, Any]) -> TrainedPart | None:
    from gemma4_lora.transform import trained_part

    return trained_part(model, values)


def _based_on(folder: Path) -> tuple[str | None, Mapping[str, Any]] | None:
    from gemma4_lora.config import CONFIG_FILE, read_config
    from gemma4_lora.files import LAST, newest

    if not any((place / CONFIG_FILE).is_file() for place in (folder, folder / LAST)):
        return None
    return read_config(newest(folder)).base_model or None, {"adapter": [str(folder)]}


OPTIONS = (
    Option("--adapter", "Adapter folder in the peft layout to apply; several add up.", multiple=True, metavar="FOLDER"),
    Option("--adapter-strength", "Factor on the adapters' scale (1).", type=float),
    Option("--adapter-mode", "merged: copies of the changed matrices, as fast as the base; beside: no copies, slower. "
           "Default: merged where there is room.", choices=("merged", "beside")),
    Option("--lora", "Train an adapter instead of the model; with --adapter, train that one further.", type=bool,
           default=False, training=True),
    Option("--lora-rank", "Rank of a new adapter (16).", type=int, training=True),
    Option("--lora-alpha", "Alpha of a new adapter: changes are scaled by alpha / rank (twice the rank).", type=float,
           training=True),
    Option("--lora-targets", "Matrices that a new adapter changes: globs over tensor names, or module names such as "
           "q_proj (attention and MLP of the text layers).", multiple=True, metavar="NAME", training=True),
    Option("--lora-init", "Distribution of A's random values (kaiming); B is zero.", choices=("kaiming", "gaussian"),
           training=True),
    Option("--lora-seed", "Seed of those random values, and of the dropout (0).", type=int, training=True),
    Option("--lora-dropout", "Share of the adapter's inputs that is dropped in training (0; with --adapter what that "
           "one was trained with).", type=float, training=True),
    Option("--lora-rslora", "Scale by alpha / sqrt(rank).", type=bool, default=False, training=True),
)  # fmt: skip


@hookimpl
def gemma4_model_transforms() -> list[ModelTransform]:
    """Low-rank adapters."""
    return [
        ModelTransform(
            name="lora",
            summary="low-rank adapters: --adapter applies them, --lora trains one",
            apply=_apply,
            options=OPTIONS,
            trained_part=_trained_part,
            check=_check,
            based_on=_based_on,
        )
    ]
