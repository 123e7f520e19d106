"""The origin page's fine-tuning and quantised-checkpoint snippets, as written, with the import mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_tools import quick

from gemma4_core import load_pretrained, load_training_checkpoint
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_dict

pytestmark = pytest.mark.slow

FINE_TUNING = """
from tinygrad_gemma import (
    GemmaTrainingBatch,
    build_optimizer,
    load_pretrained,
    save_training_checkpoint,
    train_step,
)
model = load_pretrained("/path/to/model", device="CPU")
optimizer = build_optimizer(model, optimizer="adamw", lr=1e-5, weight_decay=0.01)
loss = train_step(model, optimizer, GemmaTrainingBatch(input_ids=[2, 106, 1234, 99]))
save_training_checkpoint(model, "/tmp/gemma4-finetune-step", optimizer=optimizer, training_metadata={"step": 1})
"""
QUANTISED = """
from tinygrad_gemma import build_optimizer, load_pretrained, save_training_checkpoint
save_training_checkpoint(model, "/tmp/gemma4-int8", quantize="int8")
reloaded = load_pretrained("/tmp/gemma4-int8", device="CPU")
optimizer = build_optimizer(reloaded, optimizer="adamw", lr=1e-5, weight_decay=0.0)
"""


def mapped(snippet: str, folder: Path) -> str:
    """The snippet with our package's name, and paths inside a folder."""
    text = snippet.replace("tinygrad_gemma", "gemma4_core").replace("/tmp/", "/path/to/")
    return text.replace("/path/to/", f"{folder}/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = preset_dict("tiny-31b")
    config["text_config"] |= {"vocab_size": 1280}
    write_random_checkpoint(tmp_path / "model", config)
    return tmp_path


def test_both_snippets(folder: Path) -> None:
    names: dict[str, object] = {}
    with quick():
        exec(mapped(FINE_TUNING, folder), names)
        assert np.isfinite(names["loss"].item())  # type: ignore[attr-defined]
        # towers are loaded and their tensors among those that may train; a text batch gives them no gradient
        assert any("vision_tower" in name for name in names["optimizer"].named_params)  # type: ignore[attr-defined]
        other = load_pretrained(folder / "gemma4-finetune-step", device="cpu")
        assert load_training_checkpoint(folder / "gemma4-finetune-step", other) == {"step": 1}
        model = names["model"]
        exec(mapped(QUANTISED, folder), names)
    reloaded = names["reloaded"]
    assert reloaded.format_name == "int8"  # type: ignore[attr-defined]
    for name, tensor in model.named_tensors().items():  # type: ignore[attr-defined]
        before, after = tensor.float().numpy(), reloaded.named_tensors()[name].float().numpy()  # type: ignore[attr-defined]
        # half a step of int8, and the rounding to bfloat16 of a weight made ordinary again
        bound = 0.6 * np.abs(before).max(-1, keepdims=True) / 127 + 2**-8 * np.abs(before) if before.ndim else 0.0
        assert (np.abs(before - after) <= bound + 1e-7).all(), name
