"""Checkpoint folders that targets start from, and what they do with them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuzzing.samples import folder_sample
from fuzzing.watch import ROOT

TEXT = ROOT / "tests" / "reference" / "data" / "text"
MEDIA = ROOT / "tests" / "reference" / "data" / "media"
TOKENIZER = ROOT / "tests" / "data" / "tokenizer"
TEMPLATES = ROOT / "tests" / "data" / "template"
ADAPTERS = ROOT / "plugins" / "gemma4-lora" / "tests" / "reference"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "one"}, {"role": "user", "content": "Two?"}]


class Checked(Exception):
    """Ends loading once everything except the weights has been read."""


def small_config(towers: bool = False, **text: Any) -> dict[str, Any]:
    """A config of one small layer with the ids of the tokenizer that ships with the package."""
    from gemma4_core.config import preset_dict
    from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE

    config = preset_dict("tiny-31b", towers)
    config["text_config"] |= {
        **TINY_TEXT_IDS, "vocab_size": TINY_VOCAB_SIZE, "num_hidden_layers": 1, "layer_types": ["full_attention"],
        "hidden_size": 16, "intermediate_size": 16, **text,
    }
    return config | {**TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}


@lru_cache
def small_checkpoint() -> Mapping[str, bytes | str]:
    """A whole folder of about 40 kB: weights, tokenizer, template, generation and processor config."""
    from gemma4_core.checkpoint import write_random_checkpoint
    from gemma4_core.text.tiny import copy_tiny_tokenizer

    with tempfile.TemporaryDirectory() as place:
        folder = write_random_checkpoint(Path(place) / "model", small_config())
        copy_tiny_tokenizer(folder)
        return folder_sample(folder)


def reference_config(name: str) -> bytes:
    """config.json of one of the reference checkpoints, such as ``text/e2b``."""
    return (ROOT / "tests" / "reference" / "data" / name / "config.json").read_bytes()


def open_checkpoint(folder: Path, **options: Any) -> None:
    """Read everything in a folder that is read before the weights."""
    from gemma4_core import load_pretrained

    def stop(processor: Any) -> None:
        raise Checked

    try:
        load_pretrained(folder, device="cpu", check=stop, **options)
    except Checked:
        return
    raise AssertionError("load_pretrained did not ask its check")


def plain(value: Any) -> bytes:
    """JSON text of plain values."""
    return json.dumps(value).encode()
