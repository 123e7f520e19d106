"""Adapters that peft saved: applied, written again, and found by other spellings of their modules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gemma4_lora import Adapters, read_adapter, save_adapter
from gemma4_lora.config import LoraConfig
from lora_tools import FAMILIES, HERE, base_folder, logits, stored_logits, tiny
from reference_data import load, read_header, relative_error, tensor_shapes, write_safetensors
from safetensors.numpy import load_file, save_file

from gemma4_core.config import load_config


@pytest.mark.parametrize("name", ["dense", "moe", pytest.param("e2b-mm", marks=pytest.mark.slow)])
def test_both_ways_give_what_peft_gives(name: str) -> None:
    model = tiny(name)
    adapters, before, wanted = Adapters.of(model), logits(model, name), stored_logits(name)
    adapters.load("theirs", HERE / name)
    assert relative_error(before, wanted) > 1
    for mode in ("beside", "merged"):
        adapters.activate("theirs", mode=mode)
        assert relative_error(logits(model, name), wanted) < 1e-4
    adapters.deactivate()
    assert np.array_equal(logits(model, name), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_has_the_keys_and_bits_of_peft(name: str, tmp_path: Path) -> None:
    adapter = read_adapter(HERE / name, load_config(base_folder(name)))
    save_adapter(tmp_path / "mine", adapter)
    modes = {path.stat().st_mode for path in (tmp_path / "mine").iterdir()}
    assert len(modes) == 1, "others may read either file or neither"
    theirs, mine = (load_file(folder / "adapter_model.safetensors") for folder in (HERE / name, tmp_path / "mine"))
    assert theirs.keys() == mine.keys()
    assert all(np.array_equal(theirs[key], mine[key]) and mine[key].dtype == np.float32 for key in theirs)
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    original = json.loads((HERE / name / "adapter_config.json").read_text())
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"):
        assert config[key] == original[key]
    modules = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in theirs}
    assert {module for module in modules if "experts" not in module} == set(config["target_modules"])
    assert bool(config["target_parameters"]) == (name == "moe")
    again = read_adapter(tmp_path / "mine", load_config(base_folder(name)))
    assert all(again.pairs[key].scale == pair.scale for key, pair in adapter.pairs.items())


def test_ranks_and_scales_follow_the_patterns() -> None:
    adapter = read_adapter(HERE / "dense", load_config(base_folder("dense")))
    prefix = "model.language_model.layers."
    expected = {"1.mlp.down_proj": (3, 6 / 3**0.5), "2.mlp.down_proj": (2, 6 / 2**0.5), "2.self_attn.q_proj": (1, 6.0),
                "0.self_attn.k_proj": (2, 3 / 2**0.5)}
    for module, (rank, scale) in expected.items():
        pair = adapter.pairs[f"{prefix}{module}.weight"]
        assert pair.a.shape[0] == pair.b.shape[1] == rank and pair.scale == pytest.approx(scale)
    plain = LoraConfig(8, 16.0, alpha_pattern={"q_proj": 4.0})
    assert (plain.of("x.q_proj"), plain.of("x.other_q_proj")) == ((8, 0.5), (8, 2.0))


def test_modules_of_the_text_model_alone_are_found_under_towers_and_the_other_way_round(tmp_path: Path) -> None:
    towers, alone = load_config(base_folder("e4b")), load_config(load("e4b").variant("text"))
    assert (towers.text_prefix, alone.text_prefix) == ("model.language_model.", "model.")
    module = "layers.0.self_attn.q_proj"
    out, inner = tensor_shapes(load("e4b").variant("text"))[f"model.{module}.weight"]
    shutil.copy(HERE / "moe" / "adapter_config.json", tmp_path)
    a, b = np.ones((1, inner), np.float32), np.ones((out, 1), np.float32)
    for written in ("model.", "model.language_model."):
        keys = [f"base_model.model.{written}{module}.{half}.weight" for half in ("lora_A", "lora_B")]
        save_file(dict(zip(keys, (a, b), strict=True)), tmp_path / "adapter_model.safetensors")
        for config in (towers, alone):
            [name] = read_adapter(tmp_path, config).pairs
            assert name == f"{config.text_prefix}{module}.weight"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_halves_are_read_as_they_are(dtype: str, tmp_path: Path) -> None:
    config = load_config(base_folder("dense"))
    shutil.copy(HERE / "dense" / "adapter_config.json", tmp_path)
    write_safetensors(tmp_path / "adapter_model.safetensors",
                      load_file(HERE / "dense" / "adapter_model.safetensors"), dtype)
    assert {entry["dtype"] for entry in read_header(tmp_path / "adapter_model.safetensors").values()} == {dtype}
    exact, halved = (read_adapter(folder, config).pairs for folder in (HERE / "dense", tmp_path))
    for name, pair in exact.items():
        assert np.allclose(halved[name].a, pair.a, rtol=2**-8) and not np.array_equal(halved[name].a, pair.a)
