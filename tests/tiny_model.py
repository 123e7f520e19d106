"""A tiny checkpoint with random weights: E2B's architecture, the small vocabulary that ships with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_dict
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE

PRESET = "tiny-e2b"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_config(towers: bool = True) -> dict[str, Any]:
    """config.json, with the ids of the small tokenizer."""
    config = preset_dict(PRESET, towers)
    sizes = {"vocab_size": TINY_VOCAB_SIZE, "vocab_size_per_layer_input": TINY_VOCAB_SIZE}
    config["text_config"] |= {**TINY_TEXT_IDS, **sizes}
    return {**config, **TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}


def write_tiny_checkpoint(folder: Path | str, seed: int = 0, towers: bool = True) -> Path:
    """Write the model with tokenizer and chat template, about a megabyte.

    Raises CheckpointError where the folder cannot be written, or holds something other than a checkpoint.
    """
    source = files("gemma4_core") / "data" / "tokenizer"
    extra = {name: (source / name).read_bytes() for name in TOKENIZER_FILES}
    generation = {**TINY_TEXT_IDS, "do_sample": False, "eos_token_id": list(TINY_STOP_IDS)}
    extra["generation_config.json"] = json.dumps(generation, indent=2).encode()
    return write_random_checkpoint(folder, tiny_config(towers), seed, extra_files=extra)
