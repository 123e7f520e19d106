"""The names that ``gemma4_core`` promises."""

from __future__ import annotations

import importlib

import pytest

import gemma4_core

PROMISED = [
    "load_pretrained", "GemmaCache", "GemmaMultimodalProcessor", "registry", "hookimpl", "hookspec",
    "GemmaTrainingBatch", "build_optimizer", "train_step", "compute_loss", "save_training_checkpoint",
    "load_training_checkpoint", "CheckpointFormat", "ModalityTower", "TokenizerBackend", "DeviceBackend",
    "OptimizerBackend", "ModelTransform", "Gemma4Error", "Answer", "Chat", "GemmaModel", "LoadedModel",
    "DrafterBackend", "ConstraintBackend", "Constraint", "Drafter", "Request", "Scheduler", "quantizable",
]  # fmt: skip


def test_every_promised_name_is_public() -> None:
    assert set(PROMISED) <= set(gemma4_core.__all__) <= set(dir(gemma4_core))


@pytest.mark.parametrize("name", gemma4_core.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gemma4_core, name) is getattr(gemma4_core, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = gemma4_core.nonsense


def test_the_registry_is_the_object_whatever_was_imported_before() -> None:
    importlib.import_module("gemma4_core.plugins.selection")
    from gemma4_core import registry

    assert isinstance(registry, gemma4_core.Registry)
    assert isinstance(importlib.import_module("gemma4_core.plugins").registry, gemma4_core.Registry)


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert gemma4_core.__version__ == version("tinygrad-gemma4")


def test_every_error_is_a_gemma4_error() -> None:
    names = vars(importlib.import_module("gemma4_core.errors"))
    errors = [value for name, value in names.items() if name.endswith("Error")]
    assert len(errors) >= 7 and all(issubclass(error, gemma4_core.Gemma4Error) for error in errors)
