"""The shapes of the demo models: config.json objects with every mechanism of their family, a few million weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_model.tokens import SIZE, tokenizer_files
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_dict
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS

SLIDING, FULL = "sliding_attention", "full_attention"
CONTEXT = 1024
SOFT_TOKENS = 70
"""Budget of a picture: the smallest that there is."""
VISION = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 24, "patch_size": 8, "pooling_kernel_size": 2,
    "position_embedding_size": 256, "default_output_length": SOFT_TOKENS,
}
AUDIO = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims": 128,
         "subsampling_conv_channels": [128, 16]}
EFFICIENT = {
    "hidden_size": 192, "intermediate_size": 288, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 32, "global_head_dim": 64, "sliding_window": 64, "hidden_size_per_layer_input": 32,
    "num_hidden_layers": 8, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL],
}
"""As E2B: per-layer embeddings, the last three layers take K and V of layers 3 and 4, and are twice as wide."""
EXPERTS = {
    "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_global_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64, "sliding_window": 64,
    "num_hidden_layers": 6, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
}
"""As 26B-A4B: experts beside the dense MLP, full layers whose keys are their values, pictures seen both ways."""
EASY = {
    "text_config": {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "head_dim": 32, "global_head_dim": 32,
        "hidden_size_per_layer_input": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
    },
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "num_key_value_heads": 2, "head_dim": 16},
    "audio_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32,
                     "subsampling_conv_channels": [128, 4]},
}
"""Sections of a model small enough to learn easy tasks on a processor within minutes."""
VARIANTS = {"demo": ("tiny-e2b", EFFICIENT, AUDIO), "experts": ("tiny-26b", EXPERTS, None)}


def demo_config(variant: str, easy: bool = False) -> dict[str, Any]:
    """config.json of a variant."""
    preset, sizes, audio = VARIANTS[variant]
    config = preset_dict(preset)
    own = {**sizes, **TINY_TEXT_IDS, "vocab_size": SIZE, "vocab_size_per_layer_input": SIZE,
           "max_position_embeddings": CONTEXT}
    sections = {"text_config": own, "vision_config": VISION, "audio_config": audio}
    for name, values in sections.items():
        if values is not None:
            config[name] |= values | (EASY[name] if easy else {})
    return {**config, **TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}


def write_start(folder: Path, variant: str, seed: int, easy: bool = False) -> Path:
    """An untrained checkpoint with tokenizer and settings: what training starts from."""
    generation = {**TINY_TEXT_IDS, "do_sample": False, "eos_token_id": list(TINY_STOP_IDS)}
    processor = {"image_processor": {"max_soft_tokens": SOFT_TOKENS}}
    extra = tokenizer_files() | {
        "generation_config.json": json.dumps(generation, indent=2).encode(),
        "processor_config.json": json.dumps(processor, indent=2).encode(),
    }
    return write_random_checkpoint(folder, demo_config(variant, easy), seed, extra_files=extra)
