"""The four official sizes and three tiny models of the same families, as config.json objects and as configs.

Values of the official sizes: released config.json files of google/gemma-4-*, and the variant table of transformers'
conversion script.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from gemma4_core.config.outer import GemmaConfig, parse_config
from gemma4_core.config.text import FULL, SLIDING
from gemma4_core.errors import ConfigError
from gemma4_core.formatting import shown

OFFICIAL_IDS = {
    "boi_token_id": 255_999,
    "eoi_token_id": 258_882,
    "image_token_id": 258_880,
    "video_token_id": 258_884,
    "boa_token_id": 256_000,
    "eoa_token_id": 258_883,
    "eoa_token_index": 258_883,
    "audio_token_id": 258_881,
    "eos_token_id": [1, 106],
}
# the same text ids as the official vocabulary, media ids at the end of a vocabulary of 512
TINY_IDS = {
    "boi_token_id": 504,
    "eoi_token_id": 505,
    "image_token_id": 506,
    "video_token_id": 507,
    "boa_token_id": 508,
    "eoa_token_id": 509,
    "eoa_token_index": 509,
    "audio_token_id": 510,
    "eos_token_id": [1, 106],
}
TINY_VOCABULARY = 512
GENERATION: dict[str, Any] = {
    "bos_token_id": 2,
    "do_sample": True,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}
"""generation_config.json of the instruction-tuned releases."""

DENSE_PAIR = {"num_kv_shared_layers": 0, "attention_k_eq_v": True, "use_bidirectional_attention": "vision"}
SMALL_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "use_clipped_linears": True,
    "standardize": False,
}
LARGE_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "use_clipped_linears": False,
    "standardize": True,
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 256,
}
TINY_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    # the reference needs 128 here: its projection counts a quarter of this number as frequencies
    "subsampling_conv_channels": [128, 4],
    "output_proj_dims": 24,
}
EFFICIENT = {"hidden_size_per_layer_input": 256, "sliding_window": 512}
LARGE = {"hidden_size_per_layer_input": 0, "sliding_window": 1024, "max_position_embeddings": 262_144}
EXPERTS = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
TINY = {
    "vocab_size": TINY_VOCABULARY,
    "vocab_size_per_layer_input": TINY_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
}


def pattern(count: int, period: int) -> list[str]:
    """Kinds of layers where every ``period``-th is full."""
    return [SLIDING if (index + 1) % period else FULL for index in range(count)]


def text_dict(layers: int, period: int, *parts: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A text config in the released flat style."""
    base: dict[str, Any] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": False,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "layer_types": pattern(layers, period),
        "max_position_embeddings": 131_072,
        "model_type": "gemma4_text",
        "moe_intermediate_size": None,
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_hidden_layers": layers,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            SLIDING: {"rope_theta": 1e4, "rope_type": "default"},
            FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        },
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": None,
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": 262_144,
        "vocab_size_per_layer_input": 262_144,
    }
    for part in (*parts, values):
        base |= part
    return dict(sorted(base.items()))


def vision_dict(sizes: dict[str, Any]) -> dict[str, Any]:
    """A vision config in the released style."""
    base = {
        "attention_bias": False,
        "default_output_length": 280,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma4_vision",
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": 10_240,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    }
    return dict(sorted((base | sizes).items()))


def audio_dict(sizes: dict[str, Any]) -> dict[str, Any]:
    """An audio config in the released style."""
    base = {
        "attention_chunk_size": 12,
        "attention_context_left": 13,
        "attention_context_right": 0,
        "attention_invalid_logits_value": -1e9,
        "attention_logit_cap": 50.0,
        "conv_kernel_size": 5,
        "gradient_clipping": 1e10,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "model_type": "gemma4_audio",
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "output_proj_dims": 1536,
        "residual_weight": 0.5,
        "rms_norm_eps": 1e-6,
        "subsampling_conv_channels": [128, 32],
        "use_clipped_linears": True,
    }
    return dict(sorted((base | sizes).items()))


def outer_dict(
    text: dict[str, Any], vision: dict[str, Any], audio: dict[str, Any] | None, ids: dict[str, Any]
) -> dict[str, Any]:
    """A whole config.json."""
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None if audio is None else audio_dict(audio),
        "dtype": "bfloat16",
        **ids,
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": True,
        "vision_config": vision_dict(vision),
    }


def sizes(hidden: int, wide: int, heads: int, keys: int, full_keys: int | None = None) -> dict[str, Any]:
    """The five numbers in which the dense parts differ."""
    return {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "num_global_key_value_heads": full_keys,
    }


def all_dicts() -> dict[str, dict[str, Any]]:
    """Every preset's config.json by name."""
    small_audio: dict[str, Any] = {}
    tiny_efficient = TINY | sizes(64, 96, 4, 1) | {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 3}
    tiny_large = TINY | DENSE_PAIR | sizes(64, 96, 4, 2, 1) | {"hidden_size_per_layer_input": 0}
    tiny_experts = EXPERTS | {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32}
    tiny_clipped = TINY_VISION | {"use_clipped_linears": True, "standardize": False}
    tiny_standard = TINY_VISION | {"use_clipped_linears": False, "standardize": True}
    e2b = text_dict(35, 5, EFFICIENT, sizes(1536, 6144, 8, 1), num_kv_shared_layers=20, use_double_wide_mlp=True)
    e4b = text_dict(42, 6, EFFICIENT, sizes(2560, 10_240, 8, 2), num_kv_shared_layers=18)
    moe = text_dict(30, 6, LARGE, DENSE_PAIR, EXPERTS, sizes(2816, 2112, 16, 8, 2))
    dense = text_dict(60, 6, LARGE, DENSE_PAIR, sizes(5376, 21_504, 32, 16, 4))
    return {
        "E2B": outer_dict(e2b, SMALL_VISION, small_audio, OFFICIAL_IDS),
        "E4B": outer_dict(e4b, SMALL_VISION, small_audio, OFFICIAL_IDS),
        "26B-A4B": outer_dict(moe, LARGE_VISION, None, OFFICIAL_IDS),
        "31B": outer_dict(dense, LARGE_VISION, None, OFFICIAL_IDS),
        "tiny-e2b": outer_dict(
            text_dict(6, 3, tiny_efficient, use_double_wide_mlp=True), tiny_clipped, TINY_AUDIO, TINY_IDS
        ),
        "tiny-26b": outer_dict(text_dict(4, 2, tiny_large, tiny_experts), tiny_standard, None, TINY_IDS),
        "tiny-31b": outer_dict(text_dict(4, 2, tiny_large), tiny_standard, None, TINY_IDS),
    }


DICTS = all_dicts()


def find(name: str) -> str:
    """The preset's name in its own spelling: of ``E2B`` in any case, ``e2b-it``, ``google/gemma-4-E2B``.

    Raises ConfigError naming those there are.
    """
    wanted = name.lower().removeprefix("google/").removeprefix("gemma-4-").removesuffix("-it")
    for known in DICTS:
        if known.lower() == wanted:
            return known
    raise ConfigError(f"no preset {shown(name)}; there are {', '.join(DICTS)}")


def preset_dict(name: str, towers: bool = True, text_only: bool = False) -> dict[str, Any]:
    """A fresh config.json object of a preset, to change and write.

    Args:
        name: a preset in any case. Raises ConfigError for others.
        towers: False sets ``vision_config`` and ``audio_config`` to null.
        text_only: the object of a ``gemma4_text`` checkpoint.
    """
    data = copy.deepcopy(DICTS[find(name)])
    if text_only:
        return {"architectures": ["Gemma4ForCausalLM"], **data["text_config"]}
    return data if towers else data | {"vision_config": None, "audio_config": None}


def preset_config(name: str, towers: bool = True, text_only: bool = False) -> GemmaConfig:
    """A preset as a config, with the arguments of ``preset_dict``."""
    return parse_config(preset_dict(name, towers, text_only), f"preset {find(name)}")


PRESETS: dict[str, Callable[..., GemmaConfig]] = {name: partial(preset_config, name) for name in DICTS}
"""Config factories by name: ``PRESETS["E2B"]()``."""
