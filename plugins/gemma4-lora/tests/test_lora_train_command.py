"""``gemma4 train --lora``: a run that is interrupted and resumed, an int8 base, and the adapter used afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4
from gemma4_lora import fuse
from lora_tools import tiny
from train_tools import write_checkpoint, write_lines

from gemma4_core.quantize import quantize


def trained(model: Path, output: Path, *more: Any) -> dict[str, Any]:
    data = write_lines(output.parent / "train.jsonl")
    ran = gemma4("train", "-m", model, "--data", data, "-o", output, "--lr", "0.05", "--max-length", 32, "--device",
                 "cpu", "--batch-size", 2, "--lora", "--lora-rank", 2, "--lora-targets", "q_proj", "mlp.down_proj",
                 "--json", *more)  # fmt: skip
    assert (ran.code, ran.err) == (0, ""), ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


def answer(model: Path, *more: Any) -> list[int]:
    ran = gemma4("generate", "-m", model, "--prompt", "One?", "--temperature", 0, "-n", 4, "--device", "cpu", "--json",
                 *more)  # fmt: skip
    assert (ran.code, ran.err) == (0, ""), ran
    tokens: list[int] = json.loads(ran.out)["tokens"]
    return tokens


def numbers(folder: Path, **options: Any) -> np.ndarray:
    return np.array(tiny(folder=folder, options=options).forward_ids([2, 30, 41])[0].numpy())


@pytest.mark.slow
def test_a_run_trains_an_adapter_resumes_it_and_gives_it_to_generate_and_fuse(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    summary = trained(model, tmp_path / "once", "--steps", 6)
    assert summary["trained_parameters"] < 2000 < summary["frozen_parameters"]
    trained(model, tmp_path / "twice", "--steps", 3)
    ran = gemma4("train", "-o", tmp_path / "twice", "--resume", "--steps", 6, "--json")
    assert ran.code == 0 and json.loads(ran.out)["resumed_from"] == 3, ran
    once, twice = (tmp_path / name / "last" for name in ("once", "twice"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_state.safetensors"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()
    assert {path.name for path in once.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "training_state.safetensors", "training_state.json"
    }  # fmt: skip
    fuse(model, [once], tmp_path / "fused")
    assert answer(model, "--adapter", tmp_path / "once") == answer(tmp_path / "fused")
    fused, merged = numbers(tmp_path / "fused"), numbers(model, adapter=str(once))
    assert np.abs(fused - merged).max() < 1e-4 < 0.05 < np.abs(fused - numbers(model)).max()


def test_an_int8_base_stays_as_it_is(tmp_path: Path) -> None:
    packed = quantize(write_checkpoint(tmp_path / "model"), tmp_path / "packed")
    trained(packed, tmp_path / "run", "--steps", 4)
    beside = numbers(packed, adapter=str(tmp_path / "run"), adapter_mode="beside")
    assert np.abs(beside - numbers(packed, adapter=str(tmp_path / "run"), adapter_mode="merged")).max() < 1e-3
    assert np.abs(beside - numbers(packed)).max() > 0.05


def test_what_does_not_go_together_is_said_before_the_model_is_read(tmp_path: Path) -> None:
    model, data = write_checkpoint(tmp_path / "model"), write_lines(tmp_path / "train.jsonl")
    args = ("train", "-m", model, "--data", data, "-o", tmp_path / "run", "--device", "cpu")
    assert '"nothing"' in failure(*args, "--lora", "--lora-targets", "nothing")
    assert "--lora-rank" in failure(*args, "--lora-rank", 4)
    assert "--lora-dropout 0.1 needs --lora" in failure(*args, "--lora-dropout", 0.1)
    assert "--lora-dropout 1.0: a number from 0 to below 1" in failure(*args, "--lora", "--lora-dropout", 1)
    assert "embed_tokens" in failure(*args, "--lora", "--lora-targets", "*embed_tokens.weight")
    assert not (tmp_path / "run").exists()
