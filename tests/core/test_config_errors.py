"""Every wrong config.json is refused in one line that names the key and shows the value."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_tools import failure

from gemma4_core import load_pretrained, registry
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import load_config, parse_config, preset_config, preset_dict
from gemma4_core.errors import ConfigError, Gemma4Error, PluginError
from gemma4_core.plugins.selection import check_part


def refuse(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        registry.towers_of(parse_config(data))  # as where a checkpoint is opened
    message = str(caught.value)
    assert "\n" not in message and 0 < len(message) < 500
    return message


def change(path: str, value: Any, preset: str = "tiny-e2b") -> dict[str, Any]:
    data = preset_dict(preset)
    *sections, key = path.split("/")
    target = data
    for section in sections:
        target = target[section]
    target[key] = value
    return data


WRONG: list[tuple[str, Any]] = [
    ("text_config/rms_norm_eps", 10**400),
    ("text_config/rms_norm_eps", -(10**400)),
    ("text_config/rms_norm_eps", True),
    ("text_config/rms_norm_eps", -0.0),
    ("text_config/hidden_size", 10**400),
    ("text_config/final_logit_softcapping", 10**400),
    ("text_config/rope_parameters/full_attention/rope_theta", 10**400),
    ("text_config/rope_parameters/full_attention/factor", True),
    ("text_config/rope_parameters/full_attention/factor", 10**400),
    ("text_config/num_hidden_layers", -1),
    ("text_config/num_hidden_layers", 0),
    ("text_config/num_hidden_layers", True),
    ("text_config/num_hidden_layers", 6.0),
    ("text_config/num_hidden_layers", "6"),
    ("text_config/num_hidden_layers", None),
    ("text_config/num_hidden_layers", 10**9),
    ("text_config/num_hidden_layers", 10**400),
    ("text_config/hidden_size", 0),
    ("text_config/hidden_size", 2**40),
    ("text_config/vocab_size", [512]),
    ("text_config/head_dim", 15),
    ("text_config/global_head_dim", 33),
    ("text_config/global_head_dim", -2),
    ("text_config/num_attention_heads", 0),
    ("text_config/num_key_value_heads", 3),
    ("text_config/sliding_window", 0),
    ("text_config/layer_types", ["full_attention"]),
    ("text_config/layer_types", "full_attention"),
    ("text_config/layer_types", {"a": 1}),
    ("text_config/num_kv_shared_layers", 6),
    ("text_config/num_kv_shared_layers", 5),
    ("text_config/num_kv_shared_layers", -1),
    ("text_config/num_kv_shared_layers", None),
    ("text_config/attention_bias", True),
    ("text_config/attention_bias", 0),
    ("text_config/tie_word_embeddings", False),
    ("text_config/hidden_activation", "silu"),
    ("text_config/use_bidirectional_attention", "all"),
    ("text_config/rms_norm_eps", 0),
    ("text_config/rms_norm_eps", "1e-6"),
    ("text_config/rms_norm_eps", float("nan")),
    ("text_config/final_logit_softcapping", -30.0),
    ("text_config/final_logit_softcapping", float("inf")),
    ("text_config/use_double_wide_mlp", 1),
    ("text_config/enable_moe_block", "yes"),
    ("text_config/max_position_embeddings", 0),
    ("text_config/pad_token_id", 512),
    ("text_config/bos_token_id", -2),
    ("text_config/eos_token_id", [1, -1]),
    ("text_config/eos_token_id", "1"),
    ("text_config/model_type", "gemma3_text"),
    ("text_config/rope_parameters", [1]),
    ("text_config/rope_parameters/full_attention", None),
    ("text_config/rope_parameters/full_attention/rope_type", "yarn"),
    ("text_config/rope_parameters/full_attention/rope_theta", 0),
    ("text_config/rope_parameters/full_attention/partial_rotary_factor", 1.5),
    ("text_config/rope_parameters/full_attention/factor", 2.0),
    ("text_config/per_layer_config", "x"),
    ("text_config/per_layer_config", {"9": {"head_dim": 32}}),
    ("text_config/per_layer_config", {"-1": {"head_dim": 32}}),
    ("text_config/per_layer_config", {"²": {"head_dim": 32}}),
    ("text_config/per_layer_config", {"2": 5}),
    ("text_config/per_layer_config", {"2": {"head_dim": 31}, "5": {"head_dim": 31}}),
    ("text_config/per_layer_config", {"2": {"head_dim": 32}}),
    ("text_config/per_layer_config", {"2": {"intermediate_size": 7}}),
    ("text_config/per_layer_config", {"2": {"skip": ["mlp"]}}),
    ("text_config", None),
    ("text_config", "gemma"),
    ("vision_config", []),
    ("vision_config/head_dim", 18),
    ("vision_config/num_key_value_heads", 5),
    ("vision_config/patch_size", 0),
    ("vision_config/rope_parameters/rope_type", "linear"),
    ("vision_config/attention_bias", True),
    ("vision_config/hidden_activation", "gelu"),
    ("vision_config/model_type", "siglip"),
    ("audio_config/hidden_size", 33),
    ("audio_config/subsampling_conv_channels", [128]),
    ("audio_config/subsampling_conv_channels", [130, 4]),
    ("audio_config/hidden_act", "relu"),
    ("audio_config/attention_logit_cap", 0),
    ("tie_word_embeddings", False),
    ("image_token_id", "<|image|>"),
    ("image_token_id", -1),
    ("eos_token_id", {"a": 1}),
    ("dtype", "float8"),
    ("dtype", 16),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}={str(value)[:20]}" for path, value in WRONG])
def test_wrong_value_is_refused_by_name(path: str, value: Any) -> None:
    message = refuse(change(path, value))
    assert "config.json" in message
    assert path.split("/")[-1] in message


@pytest.mark.parametrize(
    ("path", "value"), [("text_config/hidden_size", -77), ("text_config/hidden_activation", "swish")]
)
def test_message_shows_the_value_and_where_it_stands(path: str, value: Any) -> None:
    message = refuse(change(path, value))
    assert json.dumps(value) in message and path.replace("/", ".") in message


@pytest.mark.parametrize("value", ["gemma4_unified", "gemma3", "gemma4_assistant", "", None, 4, ["gemma4"], "Gemma4"])
def test_other_models_are_refused_by_name(value: Any) -> None:
    message = refuse(change("model_type", value))
    assert f"model_type is {json.dumps(value)}" in message
    assert '"gemma4"' in message and '"gemma4_text"' in message and "E2B" in message


def test_missing_model_type() -> None:
    assert "model_type is missing" in refuse({"hidden_size": 8})


@pytest.mark.parametrize("key", ["num_experts", "top_k_experts", "moe_intermediate_size"])
def test_experts_need_their_numbers(key: str) -> None:
    data = preset_dict("tiny-26b")
    del data["text_config"][key]
    assert f"text_config.{key} is missing" in refuse(data)


def test_more_experts_chosen_than_there_are() -> None:
    assert "top_k_experts is 9" in refuse(change("text_config/top_k_experts", 9, "tiny-26b"))


def test_missing_rope_theta() -> None:
    data = preset_dict("tiny-26b")
    del data["text_config"]["rope_parameters"]["sliding_attention"]["rope_theta"]
    assert "sliding_attention.rope_theta is missing" in refuse(data)


def test_long_and_odd_values_stay_on_one_short_line() -> None:
    message = refuse(change("text_config/hidden_activation", "evil\n\x1b[31m" + "x" * 5000))
    assert "\x1b" not in message and "evil" in message


def test_deep_values_do_not_break_the_message() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    refuse(change("text_config/hidden_size", deep))


def refused_folder(folder: Path | str) -> str:
    with pytest.raises(Gemma4Error) as caught:
        load_config(folder)
    message = str(caught.value)
    assert "\n" not in message and 0 < len(message) < 500
    return message


def test_no_such_folder(tmp_path: Path) -> None:
    assert "nowhere" in refused_folder(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    assert "model.gguf is a file" in refused_folder(tmp_path / "model.gguf")


def test_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json" in refused_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": }', "line 1 column 7"),
        (b"[1, 2]", "JSON object"),
        (b'"gemma4"', "JSON object"),
        (b"\xff\xfe{\x00", "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "hidden_size": [' + b"9" * 5000 + b"]}", '"hidden_size" is 999999999999…, a number of 5000 digits'),
        (b" " * (5 << 20), "larger than 4 MiB"),
        (b'{"a": [' + b"[]," * (1 << 20) + b"[]]}", "more than a million values"),
        (b'{"hidden_size": 1, "hidden_size": 2}', '"hidden_size" twice'),
        (b'{"model_type": "gem\\ud83dma"}', "surrogate"),
    ],
    ids=["empty", "cut", "broken", "list", "text", "utf16", "deep", "digits", "huge", "many", "twice", "surrogate"],
)
def test_broken_file(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    message = refused_folder(tmp_path)
    assert said in message and "config.json" in message


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(preset_dict("tiny-31b")).encode())
    assert load_config(tmp_path) == preset_config("tiny-31b")


def test_config_that_is_a_folder_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert "not a regular file" in refused_folder(tmp_path)
    (tmp_path / "config.json").rmdir()
    os.mkfifo(tmp_path / "config.json")
    assert "not a regular file" in refused_folder(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "new\nline"], ids=["long", "null", "newline"])
def test_odd_folder_names(name: str) -> None:
    refused_folder(name)


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"E3B.*E2B.*tiny-31b"):
        preset_dict("E3B")


def test_a_wrong_tower_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model", "tiny-e2b")
    data = json.loads((folder / "config.json").read_text())
    data["vision_config"]["head_dim"] = 18
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    for modalities in (None, ("text",)):
        with pytest.raises(ConfigError, match=r"config.json: vision_config.head_dim is 18; .* a multiple of 4"):
            load_pretrained(folder, device="cpu", modalities=modalities)
    assert "vision_config.head_dim is 18" in failure("info", "-m", folder)


def test_a_tower_that_cannot_read_its_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Any) -> Any:
        raise KeyError("layers")

    tower = dataclasses.replace(registry.modalities["vision"], config=broken)
    with pytest.raises(PluginError, match="modality 'vision' cannot read its config: KeyError: 'layers'"):
        check_part(tower, preset_config("tiny-e2b"))
