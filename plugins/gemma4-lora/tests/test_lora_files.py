"""Untrusted adapter folders: every fault is reported in one sentence, before any of the model's weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma4_lora import read_adapter
from lora_tools import HERE, base_folder, tiny
from safetensors.numpy import load_file, save_file

from gemma4_core import Gemma4Error
from gemma4_core.checkpoint.adapted import adapted
from gemma4_core.config import load_config

FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "dense", tmp_path / "adapter"))


def refused(folder: Path, name: str = "dense") -> str:
    with pytest.raises(Gemma4Error) as caught:
        read_adapter(folder, load_config(base_folder(name)))
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 500
    return message


def configure(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("bias", "all"), ("lora_bias", True), ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True), ("trainable_token_indices", [1]), ("layer_replication", [[0, 2]]),
        ("use_qalora", True), ("alora_invocation_tokens", [1]), ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"), ("peft_type", "IA3"), ("peft_type", None), ("kasa_config", {"a": 1}),
        ("an_option_of_tomorrow", 0.5), ("r", 0), ("r", "8"), ("r", True), ("lora_alpha", "x"), ("lora_alpha", [1]),
        ("use_rslora", "yes"), ("rank_pattern", [1]), ("rank_pattern", {"q_proj": 0}), ("alpha_pattern", {"(": 1}),
        ("lora_dropout", "0.1"), ("lora_dropout", 1.5),
        ("alpha_pattern", {"(a+)+$": 1}), ("rank_pattern", {".*.*.*q": 1}), ("rank_pattern", {"x" * 300: 1}),
    ],
)  # fmt: skip
def test_options_that_change_what_is_computed_are_refused_by_name(folder: Path, key: str, value: Any) -> None:
    configure(folder, **{key: value})
    message = refused(folder)
    assert key in message and "adapter_config.json" in message


def test_options_that_change_nothing_are_not(folder: Path) -> None:
    configure(folder, lora_dropout=0.1, an_option_of_tomorrow=None, another=False, init_lora_weights="eva",
              layers_to_transform=[0, 1], task_type="CAUSAL_LM", megatron_core="megatron.core")
    assert len(read_adapter(folder, load_config(base_folder("dense"))).pairs) == 18


@pytest.mark.parametrize("text", ["", "[", "[]", "\xff", "[" * 100_000, '{"peft_type": NaN}', "null"])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    assert "adapter_config.json" in refused(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 3000, -1])
def test_a_file_that_is_cut(folder: Path, size: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "adapter_model.safetensors" in refused(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    assert "absent" in refused(tmp_path / "absent")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "pickle" in refused(folder)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in refused(folder)
    assert "is not a folder" in refused(folder / "adapter_model.bin")
    assert "cannot be opened" in refused(Path("x" * 300))
    assert "is not a folder" in refused(Path("a\0b"))


def test_a_hub_name_stands_for_the_snapshot_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--poet"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    config = load_config(base_folder("dense"))
    assert read_adapter("somebody/poet", config).pairs.keys() == read_adapter(folder, config).pairs.keys()
    found = adapted("somebody/poet")
    assert found is not None and found.options == {"adapter": [str(repository / "snapshots" / "0123abc")]}
    assert "hf download" in refused(Path("somebody/else"))


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "last").symlink_to(folder.name)
    assert len(read_adapter(tmp_path, load_config(base_folder("dense"))).pairs) == 18


def test_shapes_that_do_not_fit_are_named_with_those_that_would(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({f"{FIRST}.lora_A.weight": np.zeros((2, 71), np.float32)}))
    assert "[2, 71]" in (message := refused(folder)) and "[2, 72]" in message and "q_proj" in message
    configure(folder, r=4)
    assert "rank 4" in refused(folder) and "15 tensors" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (f"{FIRST}.lora_B.weight", None, 'lora_B.weight" is missing'),
        (f"{FIRST}.lora_A.default.weight", np.zeros((1, 1), np.float32), "lora_A.default"),
        (f"{FIRST}.lora_magnitude_vector", np.zeros(3, np.float32), "lora_magnitude_vector"),
        ("base_model.model.model.language_model.embed_tokens.lora_embedding_A", np.zeros((2, 3), np.float32), "embed"),
        (f"{FIRST}.lora_A.weight", np.zeros((2, 72), np.int8), "I8"),
        (f"{FIRST}.lora_A.weight", np.full((2, 72), np.nan, np.float32), "NaN"),
        (f"{FIRST}.lora_A.weight", np.zeros(144, np.float32), "[144]"),
    ],
)
def test_tensors_that_do_not_belong(folder: Path, key: str, value: np.ndarray | None, says: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(key, None)
        if value is not None:
            tensors[key] = value

    rewrite(folder, change)
    assert says in refused(folder)


def test_another_base_is_told_by_its_matrices(folder: Path) -> None:
    assert "18 tensors do not fit" in refused(folder, "moe")
    message = refused(Path(HERE / "e2b-mm"), "dense")
    assert "the model has no matrix" in message and "more" in message


def test_a_model_is_not_read_for_an_adapter_that_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma4_core.loading.read_text", lambda *args, **options: pytest.fail("weights were read"))
    for options in (
        {"adapter": (str(folder / "absent"),)}, {"adapter": str(HERE / "moe")}, {"lora_rank": 4},
        {"lora": True, "lora_targets": ("nothing",)}, {"lora": True, "lora_targets": ("*embed_tokens.weight",)},
        {"lora": True, "lora_rank": 0}, {"lora": True, "lora_alpha": -1.0}, {"adapter_strength": 2.0},
        {"lora": True, "adapter": (str(folder),), "lora_rank": 4}, {"lora": True, "adapter": (str(folder),) * 2},
    ):  # fmt: skip
        with pytest.raises(Gemma4Error) as caught:
            tiny(options=options)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
