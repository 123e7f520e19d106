"""The kinds of description, each with the hook that returns it."""

from __future__ import annotations

from gemma4_core.contracts.callbacks import CallbackBackend
from gemma4_core.contracts.constraints import ConstraintBackend
from gemma4_core.contracts.devices import DeviceBackend
from gemma4_core.contracts.drafters import DrafterBackend
from gemma4_core.contracts.formats import CheckpointFormat
from gemma4_core.contracts.modalities import ModalityTower
from gemma4_core.contracts.optimizers import OptimizerBackend
from gemma4_core.contracts.tokenizers import TokenizerBackend
from gemma4_core.contracts.transforms import ModelTransform

Description = (
    CheckpointFormat | ModalityTower | TokenizerBackend | DeviceBackend | OptimizerBackend | ModelTransform
    | DrafterBackend | ConstraintBackend | CallbackBackend
)

KINDS: dict[str, tuple[str, type]] = {
    "format": ("gemma4_checkpoint_formats", CheckpointFormat),
    "modality": ("gemma4_modality_towers", ModalityTower),
    "tokenizer": ("gemma4_tokenizers", TokenizerBackend),
    "device": ("gemma4_devices", DeviceBackend),
    "optimizer": ("gemma4_optimizers", OptimizerBackend),
    "transform": ("gemma4_model_transforms", ModelTransform),
    "drafter": ("gemma4_drafters", DrafterBackend),
    "constraint": ("gemma4_constraints", ConstraintBackend),
    "callback": ("gemma4_training_callbacks", CallbackBackend),
}
"""Kind as the command shows it, to its hook and its dataclass."""
