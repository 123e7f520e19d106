"""The checkpoint as the package takes it: without training state."""

from __future__ import annotations

import shutil
from pathlib import Path

from gemma4_core.checkpoint import atomic_folder

FILES = (
    "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "model.safetensors",
)
LIMIT = 10_000_000
"""Bytes that the package has room for."""


def export(checkpoint: Path, target: Path) -> Path:
    """Copy a checkpoint's own files. Raises ValueError where they are too large."""
    size = sum((checkpoint / name).stat().st_size for name in FILES)
    if size > LIMIT:
        raise ValueError(f"{checkpoint}: {size} bytes are more than {LIMIT}; save it in bfloat16")
    with atomic_folder(target) as temporary:
        for name in FILES:
            shutil.copyfile(checkpoint / name, temporary / name)
    return target
