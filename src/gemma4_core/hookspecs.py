"""The hooks that a plugin may implement.

A plugin is a module or object named by an entry point of group ``gemma4``. Each hook takes no arguments and returns
a list of descriptions (see ``gemma4_core.contracts``). Every hook is called once, when the registry is first
used; results of all plugins are joined. Do not depend on the order in which plugins are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gemma4_core.contracts import (
        CallbackBackend,
        CheckpointFormat,
        ConstraintBackend,
        DeviceBackend,
        DrafterBackend,
        ModalityTower,
        ModelTransform,
        OptimizerBackend,
        TokenizerBackend,
    )

PROJECT = "gemma4"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:  # type: ignore[empty-body]
    """Ways to store weights in a checkpoint folder and to compute with them."""


@hookspec
def gemma4_modality_towers() -> list[ModalityTower]:  # type: ignore[empty-body]
    """Inputs other than text: how a medium is read, counted in soft tokens, and encoded to ``[n, hidden]``."""


@hookspec
def gemma4_tokenizers() -> list[TokenizerBackend]:  # type: ignore[empty-body]
    """Libraries that turn text into token ids and back."""


@hookspec
def gemma4_devices() -> list[DeviceBackend]:  # type: ignore[empty-body]
    """Devices to compute on, with the fast operations they bring."""


@hookspec
def gemma4_optimizers() -> list[OptimizerBackend]:  # type: ignore[empty-body]
    """Optimizers for fine-tuning."""


@hookspec
def gemma4_model_transforms() -> list[ModelTransform]:  # type: ignore[empty-body]
    """Changes to an assembled model before it runs or trains, such as adapters."""


@hookspec
def gemma4_drafters() -> list[DrafterBackend]:  # type: ignore[empty-body]
    """Ways to propose tokens that one step of the model then checks."""


@hookspec
def gemma4_constraints() -> list[ConstraintBackend]:  # type: ignore[empty-body]
    """Ways to hold an answer to a form, such as a JSON schema."""


@hookspec
def gemma4_training_callbacks() -> list[CallbackBackend]:  # type: ignore[empty-body]
    """What is told of a training run while it goes, such as a writer of logs."""
