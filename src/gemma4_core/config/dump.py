"""A config as the object that config.json holds, in the released flat style."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from gemma4_core.config.models import FAMILIES, FULL, SLIDING
from gemma4_core.config.outer import GemmaConfig, is_media_key
from gemma4_core.config.text import RopeParameters, TextConfig


def config_dict(config: GemmaConfig) -> dict[str, Any]:
    """What ``parse_config`` reads back as an equal config."""
    types = {family.text_type: family for family in FAMILIES.values()}
    family = FAMILIES.get(config.model_type) or types[config.model_type]
    text = {"model_type": family.text_type, "tie_word_embeddings": True, **text_dict(config.text_config)}
    if not config.conditional:
        return {"architectures": [family.text_architecture], "dtype": config.dtype, **text}
    absent = {key: None for key in config.raw if is_media_key(key)}
    ids = ("image", "video", "audio", "boi", "eoi", "boa", "eoa")
    return {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        "dtype": config.dtype,
        **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ids},
        "eos_token_id": list(config.eos_token_ids),
        "tie_word_embeddings": True,
        "text_config": text,
        **absent,
        **copy.deepcopy(dict(config.media)),
    }


def text_dict(text: TextConfig) -> dict[str, Any]:
    """The text config; sizes that the flat style cannot say go into ``per_layer_config``."""
    data = asdict(text)
    data["layer_types"] = list(text.layer_types)
    data["eos_token_id"] = list(data.pop("eos_token_ids"))
    del data["sliding_rope"], data["full_rope"]
    data["rope_parameters"] = {SLIDING: rope_dict(text.sliding_rope), FULL: rope_dict(text.full_rope)}
    if not text.attention_k_eq_v and text.num_global_key_value_heads != text.num_key_value_heads:
        sizes = {"head_dim": text.global_head_dim, "num_key_value_heads": text.num_global_key_value_heads}
        full = [index for index, kind in enumerate(text.layer_types) if kind == FULL]
        data["per_layer_config"] = {str(index): dict(sizes) for index in full}
    if not text.enable_moe_block:
        data |= {"num_experts": None, "top_k_experts": None, "moe_intermediate_size": None}
    return data


def rope_dict(rope: RopeParameters) -> dict[str, Any]:
    """Rotary parameters of one kind of layer."""
    data: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta}
    return data | ({"partial_rotary_factor": rope.partial_rotary_factor} if rope.rope_type != "default" else {})
