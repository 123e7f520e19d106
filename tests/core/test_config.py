"""What config.json means: presets, both spellings, defaults, layers, expected tensors."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma4_core import registry
from gemma4_core.checkpoint.context import read_context
from gemma4_core.config import (
    MODELS,
    PRESETS,
    GemmaConfig,
    config_dict,
    expected_text_tensors,
    ignorable,
    load_config,
    load_generation_config,
    parse_config,
    preset_config,
    preset_dict,
    preset_of,
)
from gemma4_core.config.models import FAMILIES, Family, Model
from gemma4_core.config.text import FULL, SLIDING
from gemma4_core.errors import ConfigError
from gemma4_plugins.modalities.vision.config import vision_config


def write(folder: Path, data: dict[str, Any], name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder


def everything(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    return registry.expected_tensors(config)


def parameters(config: GemmaConfig) -> int:
    return sum(math.prod(shape) for shape in everything(config).values())


def test_e2b_has_the_released_number_of_parameters_and_tensors() -> None:
    config = preset_config("E2B")
    text = config.text_config
    unused = sum(
        layer.head_dim * (2 * layer.num_key_value_heads * text.hidden_size + 1)
        for layer in text.layers
        if layer.is_shared
    )
    assert parameters(config) + unused == 5_123_178_979  # the released file, which also holds unused K and V
    assert len(everything(config)) + 3 * 20 == 2011


def test_e4b_has_the_released_number_of_tensors() -> None:
    assert len(everything(preset_config("E4B"))) + 3 * 18 == 2130


@pytest.mark.parametrize(("name", "billions"), [("26B-A4B", 25.8), ("31B", 31.3)])
def test_large_presets_have_the_size_in_their_name(name: str, billions: float) -> None:
    assert round(parameters(preset_config(name)) / 1e9, 1) == billions


def test_e2b_layers() -> None:
    layers = preset_config("E2B").text_config.layers
    assert [layer.index for layer in layers if layer.is_full] == [4, 9, 14, 19, 24, 29, 34]
    assert [layer.index for layer in layers if not layer.is_shared] == list(range(15))
    assert {layer.donor for layer in layers if layer.is_shared and not layer.is_full} == {13}
    assert {layer.donor for layer in layers if layer.is_shared and layer.is_full} == {14}
    assert [layer.intermediate_size for layer in layers] == [6144] * 15 + [12_288] * 20
    assert {(layer.head_dim, layer.window, layer.rope_theta) for layer in layers if layer.is_full} == {(512, None, 1e6)}
    assert {(layer.head_dim, layer.window, layer.rope_theta) for layer in layers if not layer.is_full} == {
        (256, 512, 1e4)
    }
    assert {layer.partial_rotary_factor for layer in layers if layer.is_full} == {0.25}
    assert {layer.partial_rotary_factor for layer in layers if not layer.is_full} == {1.0}


def test_e4b_donors() -> None:
    layers = preset_config("E4B").text_config.layers
    assert {(layer.kind, layer.donor) for layer in layers if layer.is_shared} == {(SLIDING, 22), (FULL, 23)}


def test_31b_full_layers_have_fewer_heads_and_no_value_projection() -> None:
    config = preset_config("31B")
    full, sliding = config.text_config.layers[5], config.text_config.layers[4]
    assert (full.num_key_value_heads, full.k_eq_v) == (4, True)
    assert (sliding.num_key_value_heads, sliding.k_eq_v) == (16, False)
    assert config.vision_bidirectional and "audio_config" not in config.media
    names = expected_text_tensors(config)
    assert "model.language_model.layers.5.self_attn.v_proj.weight" not in names
    assert names["model.language_model.layers.4.self_attn.v_proj.weight"] == (16 * 256, 5376)


def test_experts_are_stacked() -> None:
    names = expected_text_tensors(preset_config("26B-A4B", text_only=True))
    assert names["model.layers.7.experts.gate_up_proj"] == (128, 1408, 2816)
    assert names["model.layers.7.experts.down_proj"] == (128, 2816, 704)
    assert names["model.layers.7.router.per_expert_scale"] == (128,)


@pytest.mark.parametrize("name", PRESETS)
def test_both_spellings_mean_the_same(name: str) -> None:
    flat = preset_dict(name)
    text = flat["text_config"]
    nested = json.loads(json.dumps(flat))
    inner = nested["text_config"]
    overrides = {"head_dim": inner.pop("global_head_dim")}
    heads = inner.pop("num_global_key_value_heads")
    if heads:
        overrides["num_key_value_heads"] = heads
    full = [index for index, kind in enumerate(text["layer_types"]) if kind == FULL]
    inner["per_layer_config"] = {f"{index:02d}": overrides for index in full}
    assert parse_config(nested) == parse_config(flat)
    nested["vision_config"]["rope_parameters"]["rope_type"] = "axial"
    assert vision_config(parse_config(nested)) == vision_config(parse_config(flat))


def test_per_layer_config_wins_over_the_flat_keys() -> None:
    data = preset_dict("tiny-31b", text_only=True)
    data["per_layer_config"] = {"1": {"head_dim": 64}, "3": {"head_dim": 64}}
    config = parse_config(data).text_config
    assert [layer.head_dim for layer in config.layers] == [16, 64, 16, 64]
    assert [layer.num_key_value_heads for layer in config.layers] == [2, 2, 2, 2]


def test_global_heads_count_only_where_keys_are_values() -> None:
    data = preset_dict("tiny-31b", text_only=True) | {"attention_k_eq_v": False}
    assert [layer.num_key_value_heads for layer in parse_config(data).text_config.layers] == [2, 2, 2, 2]


@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_config_dict_reads_back_equal(name: str, text_only: bool) -> None:
    config = preset_config(name, text_only=text_only)
    assert parse_config(json.loads(json.dumps(config_dict(config)))) == config


def test_config_dict_keeps_sizes_that_the_flat_style_cannot_say() -> None:
    data = preset_dict("tiny-31b", text_only=True) | {"attention_k_eq_v": False}
    data["per_layer_config"] = {index: {"head_dim": 32, "num_key_value_heads": 4} for index in ("1", "3")}
    config = parse_config(data)
    assert config.text_config.num_global_key_value_heads == 4
    assert parse_config(config_dict(config)) == config


def test_defaults_of_absent_keys_are_those_of_the_reference() -> None:
    config = parse_config({"model_type": "gemma4_text"})
    text = config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads) == (2304, 30, 4)
    assert text.layer_types == (SLIDING,) * 5 * 1 + (FULL,) + ((SLIDING,) * 5 + (FULL,)) * 4
    assert (text.layers[5].head_dim, text.layers[5].rope_theta, text.layers[5].partial_rotary_factor) == (
        512,
        1e6,
        0.25,
    )
    assert (text.hidden_size_per_layer_input, text.final_logit_softcapping) == (256, None)
    assert (config.dtype, config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ("bfloat16", (1,), 0, 2)
    assert config.text_prefix == "model." and not config.conditional


def test_last_layer_is_always_full() -> None:
    data = preset_dict("tiny-31b", text_only=True) | {"layer_types": [SLIDING, FULL, SLIDING, SLIDING]}
    assert parse_config(data).text_config.layer_types == (SLIDING, FULL, SLIDING, FULL)


def test_outer_config_without_towers() -> None:
    config = parse_config(preset_dict("tiny-e2b", towers=False))
    assert config.media == {} and config.part("vision_config") is None
    assert config.text_prefix == "model.language_model." and config.conditional
    assert registry.expected_tensors(config) == expected_text_tensors(config)


def test_another_model_type_is_one_more_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "gemma4_next", Family("gemma4_next_text", "GemmaNext", "GemmaNextText"))
    data = preset_dict("tiny-31b") | {"model_type": "gemma4_next", "speech_config": {"layers": 3}}
    data["text_config"] |= {"model_type": "gemma4_next_text", "hidden_size": 48}
    monkeypatch.setitem(MODELS, "12B", Model(data, "google/gemma-4-12B"))
    config = preset_config("gemma-4-12b-it")
    assert config.conditional and preset_of(config) == "12B"
    part = config.part("speech_config")
    assert part is not None and part.integer("layers", 0, 1, 9) == 3
    assert parse_config(config_dict(config)) == config
    assert preset_config("12B", text_only=True).model_type == "gemma4_next_text"
    with pytest.raises(ConfigError, match=r'"gemma4_next" \(12B\) and "gemma4_text", "gemma4_next_text" \(text only\)'):
        parse_config({"model_type": "gemma3"})


def test_stop_ids_and_media_ids() -> None:
    data = preset_dict("tiny-e2b")
    config = parse_config(data)
    assert config.eos_token_ids == (1, 106)
    assert (config.boi_token_id, config.eoa_token_id, config.audio_token_id) == (504, 509, 510)
    del data["eos_token_id"], data["eoa_token_id"]
    data["text_config"]["eos_token_id"] = [7, 7, 9]
    data["eoa_token_index"] = 500
    data["image_token_id"] = None
    config = parse_config(data)
    assert (config.eos_token_ids, config.eoa_token_id, config.image_token_id) == ((7, 9), 500, None)


def test_unknown_keys_are_ignored_and_kept_for_plugins() -> None:
    data = preset_dict("tiny-e2b") | {"a_new_key": {"x": 1}}
    data["text_config"]["another"] = [1]
    config = parse_config(data)
    assert config == preset_config("tiny-e2b")
    assert config.raw["a_new_key"] == {"x": 1}


@pytest.mark.parametrize(("spelling", "place"), [("dtype", "outer"), ("torch_dtype", "outer"), ("dtype", "inner")])
def test_dtype_in_every_place(spelling: str, place: str) -> None:
    data = preset_dict("tiny-e2b")
    del data["dtype"], data["text_config"]["dtype"]
    (data if place == "outer" else data["text_config"])[spelling] = "float32"
    assert parse_config(data).dtype == "float32"


def test_configs_are_frozen_and_comparable() -> None:
    config = preset_config("tiny-e2b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.text_config.hidden_size = 1  # type: ignore[misc]
    assert dataclasses.replace(config.text_config, sliding_window=8).layers[0].window == 8


def test_ignorable_is_only_what_shared_layers_do_not_use() -> None:
    config = preset_config("tiny-e2b")
    prefix = "model.language_model.layers."
    for part in ("k_proj", "v_proj", "k_norm"):
        assert ignorable(config, f"{prefix}3.self_attn.{part}.weight")
        assert not ignorable(config, f"{prefix}2.self_attn.{part}.weight")
        assert not ignorable(config, f"{prefix}6.self_attn.{part}.weight")
        assert not ignorable(config, f"model.layers.3.self_attn.{part}.weight")
    assert not ignorable(config, f"{prefix}3.self_attn.q_proj.weight")
    assert not ignorable(config, f"{prefix}3.self_attn.k_proj.weight.extra")


def test_tiny_presets_are_small_and_their_ids_inside_the_vocabulary() -> None:
    for name in ("tiny-e2b", "tiny-26b", "tiny-31b"):
        config = PRESETS[name]()
        assert parameters(config) < 500_000
        ids = (config.image_token_id, config.video_token_id, config.audio_token_id, config.eoa_token_id)
        assert all(
            token is not None and token < config.text_config.vocab_size for token in (*ids, *config.eos_token_ids)
        )
        assert config.text_config.sliding_window == 16


def test_preset_dict_is_a_fresh_copy() -> None:
    preset_dict("E2B")["text_config"]["hidden_size"] = 1
    assert preset_config("e2b").text_config.hidden_size == 1536


def test_reading_a_folder(tmp_path: Path) -> None:
    write(tmp_path, preset_dict("tiny-26b"))
    context = read_context(tmp_path)
    assert context.config == load_config(str(tmp_path)) == preset_config("tiny-26b")
    assert context.folder == tmp_path and context.raw_config["model_type"] == "gemma4"


def test_generation_config(tmp_path: Path) -> None:
    config = preset_config("tiny-e2b")
    absent = load_generation_config(tmp_path, config)
    assert (absent.eos_token_ids, absent.do_sample, absent.top_k, absent.suppress_tokens) == ((1, 106), False, None, ())
    values = {"do_sample": True, "top_k": 64, "top_p": 0.95, "temperature": 1, "eos_token_id": [1, 106, 50]}
    write(tmp_path, values | {"suppress_tokens": [5], "max_new_tokens": 9}, "generation_config.json")
    read = load_generation_config(tmp_path, config)
    assert read.eos_token_ids == (1, 106, 50) and read.do_sample and read.suppress_tokens == (5,)
    assert (read.top_k, read.top_p, read.temperature, read.min_p, read.repetition_penalty) == (
        64,
        0.95,
        1.0,
        None,
        None,
    )
    write(tmp_path, {"eos_token_id": 7, "top_k": 0, "temperature": 0.0}, "generation_config.json")
    read = load_generation_config(tmp_path, config)
    assert (read.eos_token_ids, read.top_k, read.temperature) == ((7,), None, 0.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", "1"), ("eos_token_id", [-1]), ("top_p", 1.5), ("temperature", -1), ("top_k", 2.5)],
)
def test_bad_generation_config_names_key_and_value(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path, {key: value}, "generation_config.json")
    with pytest.raises(ConfigError) as caught:
        load_generation_config(tmp_path, preset_config("tiny-e2b"))
    assert key in str(caught.value) and json.dumps(value) in str(caught.value)


def test_importing_the_config_imports_neither_tinygrad_nor_numpy() -> None:
    code = "import sys, gemma4_core.config; print([m for m in ('tinygrad', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
