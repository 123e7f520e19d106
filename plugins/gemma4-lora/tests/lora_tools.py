"""Shared by the adapter tests: tiny models, adapters that peft saved for them, and transformers' results for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gemma4_lora
import numpy as np
from reference_data import DATA, load, load_multimodal, read_header
from tinygrad.helpers import Context

from gemma4_core import GemmaModel, load_pretrained, registry

HERE = Path(__file__).parent / "reference"
FAMILIES = ("dense", "moe", "e2b-mm")
MEDIA = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")


@contextmanager
def prepared() -> Iterator[None]:
    """The plugin, registered by hand where it is not installed, and kernels that compile in a third of the time."""
    by_hand = "lora" not in registry.transforms
    if by_hand:
        registry.register(gemma4_lora, "lora-under-test")
    try:
        with Context(NOOPT=1):
            yield
    finally:
        if by_hand:
            registry.unregister("lora-under-test")


def base_folder(name: str) -> Path:
    """The checkpoint that an adapter of ``reference`` was made for."""
    return DATA / ("multimodal" if name.endswith("-mm") else "text") / name


def tiny(name: str = "dense", folder: Path | None = None, **options: Any) -> GemmaModel:
    """A model in fp32 on the CPU; ``options`` are those of ``load_pretrained``."""
    return load_pretrained(folder or base_folder(name), device="cpu", **{"dtype": "float32"} | options)


def stored(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a folder with one file."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    spans = {name: entry["data_offsets"] for name, entry in read_header(folder / "model.safetensors").items()}
    return {name: data[start + first : start + last] for name, (first, last) in spans.items()}


def asked(name: str) -> dict[str, Any]:
    """The arguments of ``forward_ids`` that the stored logits belong to."""
    if not name.endswith("-mm"):
        return {"ids": load(name).ids[:1]}
    case = load_multimodal(name).cases["image_and_audio"]
    return {"ids": case.ids, **{key: getattr(case, key) for key in MEDIA}}


def logits(model: GemmaModel, name: str = "dense") -> np.ndarray:
    """Logits ``[1, T, vocab]``."""
    return np.array(model.forward_ids(**asked(name))[0].numpy())


def stored_logits(name: str) -> np.ndarray:
    """The logits of transformers and peft for model and adapter."""
    with np.load(HERE / "logits.npz") as file:
        return np.array(file[name])
