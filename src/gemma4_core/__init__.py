"""A native tinygrad runtime for Gemma 4, built as a framework of plugins.

    from gemma4_core import load_pretrained
    model = load_pretrained("path/to/checkpoint")
    for part in model.stream_generate("Hello"):
        print(part.text, end="")

Names load on first use: importing the package imports neither tinygrad nor any plugin.
"""

from __future__ import annotations

import importlib

# typing takes longer to import than all else before the command can catch a Ctrl-C
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gemma4_core.checkpoint.roles import quantizable
    from gemma4_core.checkpoint.saving import Encoded, save_safetensors
    from gemma4_core.checkpoint.source import FileSource, RowSource
    from gemma4_core.contracts import (
        CallbackBackend,
        CheckpointFormat,
        CheckpointMetadata,
        Constraint,
        ConstraintBackend,
        Context,
        DeviceBackend,
        DeviceSettings,
        Drafter,
        DrafterBackend,
        MediaProcessor,
        ModalityTower,
        ModelTransform,
        OptimizerBackend,
        Option,
        PreparedMedia,
        StreamDecoder,
        TensorInfo,
        Tokenizer,
        TokenizerBackend,
        Tower,
        TrainedPart,
        TrainingCallback,
        WeightBlocks,
        WeightSource,
    )
    from gemma4_core.errors import (
        CheckpointError,
        ConfigError,
        DeviceError,
        Gemma4Error,
        InputError,
        PluginError,
        TokenizerError,
    )
    from gemma4_core.generation.answers import Answer
    from gemma4_core.generation.chat import Chat
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.generation.parts import Part, Stats
    from gemma4_core.generation.requests import Request
    from gemma4_core.generation.scheduler import Running, Scheduler, SchedulerStats
    from gemma4_core.hookspecs import hookimpl, hookspec
    from gemma4_core.loading import load_pretrained
    from gemma4_core.model import GemmaModel
    from gemma4_core.model.cache import GemmaCache
    from gemma4_core.plugins import PluginManager, Registry, registry
    from gemma4_core.processing.processor import GemmaMultimodalProcessor
    from gemma4_core.training import (
        GemmaTrainingBatch,
        build_optimizer,
        compute_loss,
        load_training_checkpoint,
        save_training_checkpoint,
        train_step,
    )
    from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack, Matrix, Weight

    __version__: str

__all__ = [
    "Answer",
    "CallbackBackend",
    "Chat",
    "CheckpointError",
    "CheckpointFormat",
    "CheckpointMetadata",
    "ConfigError",
    "Constraint",
    "ConstraintBackend",
    "Context",
    "DenseMatrix",
    "DenseStack",
    "DeviceBackend",
    "DeviceError",
    "DeviceSettings",
    "Drafter",
    "DrafterBackend",
    "Encoded",
    "ExpertStack",
    "FileSource",
    "Gemma4Error",
    "GemmaCache",
    "GemmaModel",
    "GemmaMultimodalProcessor",
    "GemmaTrainingBatch",
    "InputError",
    "LoadedModel",
    "Matrix",
    "MediaProcessor",
    "ModalityTower",
    "ModelTransform",
    "OptimizerBackend",
    "Option",
    "Part",
    "PluginError",
    "PluginManager",
    "PreparedMedia",
    "Registry",
    "Request",
    "RowSource",
    "Running",
    "Scheduler",
    "SchedulerStats",
    "Stats",
    "StreamDecoder",
    "TensorInfo",
    "Tokenizer",
    "TokenizerBackend",
    "TokenizerError",
    "Tower",
    "TrainedPart",
    "TrainingCallback",
    "Weight",
    "WeightBlocks",
    "WeightSource",
    "__version__",
    "build_optimizer",
    "compute_loss",
    "hookimpl",
    "hookspec",
    "load_pretrained",
    "load_training_checkpoint",
    "quantizable",
    "registry",
    "save_safetensors",
    "save_training_checkpoint",
    "train_step",
]

_MODULES = {
    "contracts": (
        "CallbackBackend CheckpointFormat CheckpointMetadata Constraint ConstraintBackend Context DeviceBackend"
        " DeviceSettings Drafter DrafterBackend MediaProcessor ModalityTower ModelTransform"
        " Option OptimizerBackend PreparedMedia StreamDecoder TensorInfo Tokenizer TokenizerBackend"
        " Tower TrainedPart TrainingCallback WeightBlocks WeightSource"
    ),
    "checkpoint.roles": "quantizable",
    "checkpoint.saving": "Encoded save_safetensors",
    "checkpoint.source": "FileSource RowSource",
    "errors": "CheckpointError ConfigError DeviceError Gemma4Error InputError PluginError TokenizerError",
    "generation.answers": "Answer",
    "generation.chat": "Chat",
    "generation.loaded_model": "LoadedModel",
    "generation.parts": "Part Stats",
    "generation.requests": "Request",
    "generation.scheduler": "Running Scheduler SchedulerStats",
    "hookspecs": "hookimpl hookspec",
    "loading": "load_pretrained",
    "model": "GemmaModel",
    "model.cache": "GemmaCache",
    "plugins": "PluginManager Registry registry",
    "processing.processor": "GemmaMultimodalProcessor",
    "training": (
        "GemmaTrainingBatch build_optimizer compute_loss load_training_checkpoint save_training_checkpoint train_step"
    ),
    "weights": "DenseMatrix DenseStack ExpertStack Matrix Weight",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tinygrad-gemma4")
    except PackageNotFoundError:
        return "unknown"
