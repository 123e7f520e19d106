"""What the tests of ``gemma4 train`` share: a checkpoint of one layer with tokenizer and template, and five lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli_tools import gemma4

from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_dict
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE, copy_tiny_tokenizer

DOWN = "model.language_model.layers.0.mlp.down_proj.weight"
LINES: Sequence[dict[str, Any]] = (
    {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "one"}]},
    {"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "two"}]},
    {"prompt": "Three?", "completion": "three"},
    {"text": "one two three"},
    {"text": "three two one"},
)


def write_checkpoint(folder: Path, towers: bool = False) -> Path:
    """One full-attention layer in fp32, with a vision tower if asked."""
    config = preset_dict("tiny-31b", towers)
    config["text_config"] |= {
        **TINY_TEXT_IDS, "vocab_size": TINY_VOCAB_SIZE, "num_hidden_layers": 1, "layer_types": ["full_attention"],
        "hidden_size": 32, "intermediate_size": 32,
    }
    config |= {**TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}
    write_random_checkpoint(folder, config, dtype="float32")
    copy_tiny_tokenizer(folder)
    return folder


def write_lines(path: Path, lines: Sequence[dict[str, Any]] = LINES) -> Path:
    """Lines of data."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Place:
    """A checkpoint and data, and the command over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_checkpoint(folder / "model")
        self.data = write_lines(folder / "train.jsonl")

    def args(self, output: Path | str, *more: Any) -> list[Any]:
        """A run in which one matrix trains: compiled in little time."""
        return ["train", "-m", self.model, "--data", self.data, "-o", output, "--lr", "0.01", "--max-length", 32,
                "--batch-size", 2, "--trainable", DOWN, "--device", "cpu", *more]

    def train(self, output: Path | str, *more: Any) -> dict[str, Any]:
        """What ``--json`` prints of a run that goes well."""
        ran = gemma4(*self.args(output, *more), "--json")
        assert (ran.code, ran.err) == (0, ""), ran
        found: dict[str, Any] = json.loads(ran.out)
        return found
