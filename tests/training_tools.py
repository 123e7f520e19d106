"""What the tests of training share: quick compilation, tiny models, references."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from reference_data import TRAINING, load, load_multimodal, load_training
from short_models import short_folder
from tinygrad.helpers import Context

from gemma4_core import GemmaTrainingBatch, load_pretrained
from gemma4_core.model import GemmaModel

MEDIA = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")
MLP = "*.layers.0.mlp.*"


@contextmanager
def quick() -> Iterator[None]:
    """Kernels without optimization: they compile in a third of the time, and these models are tiny."""
    with Context(NOOPT=1):
        yield


def short(name: str = "dense", **options: Any) -> GemmaModel:
    """A two-layer model in fp32 on the CPU."""
    return tiny(folder=short_folder(name), **options)


def tiny(name: str = "dense", folder: Path | None = None, **options: Any) -> GemmaModel:
    """A reference model in fp32 on the CPU."""
    return load_pretrained(folder or load(name).folder, device="cpu", **{"dtype": "float32"} | options)


def reference_batch(name: str) -> GemmaTrainingBatch:
    """The batch of a training reference."""
    case = TRAINING[name]
    labels = load_training(name).labels
    if case is None:
        return GemmaTrainingBatch(load(name).ids, labels)
    found = load_multimodal(name).cases[case]
    return GemmaTrainingBatch(found.ids, labels, **{key: getattr(found, key) for key in MEDIA})


def snapshot(model: GemmaModel) -> dict[str, np.ndarray]:
    """Every tensor of a model as it is now."""
    return {name: np.array(tensor.numpy()) for name, tensor in model.named_tensors().items()}
