"""The vision tower's tensors by full checkpoint name, with their shapes and what random ones are like."""

from __future__ import annotations

from gemma4_core.config import GemmaConfig
from gemma4_plugins.modalities.clipped_tensors import Shapes, clipped, random_bound
from gemma4_plugins.modalities.vision.config import VisionConfig, vision_config

TOWER, EMBEDDER = "model.vision_tower.", "model.embed_vision."
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def vision_tensors(config: GemmaConfig) -> Shapes:
    """The vision tower's tensors and its embedder; none where the config has no tower."""
    vision = vision_config(config)
    if vision is None:
        return {}
    hidden = vision.hidden_size
    shapes: Shapes = {
        "patch_embedder.input_proj.weight": (hidden, 3 * vision.patch_size**2),
        "patch_embedder.position_embedding_table": (2, vision.position_embedding_size, hidden),
    }
    for index in range(vision.num_hidden_layers):
        tensors = vision_layer_tensors(vision)
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in tensors.items()}
    if vision.standardize:
        shapes |= {"std_bias": (hidden,), "std_scale": (hidden,)}
    shapes = {TOWER + name: shape for name, shape in shapes.items()}
    return shapes | {f"{EMBEDDER}embedding_projection.weight": (config.text_config.hidden_size, hidden)}


def vision_layer_tensors(vision: VisionConfig) -> Shapes:
    """One encoder layer, by name below the layer."""
    hidden, wide, clip = vision.hidden_size, vision.intermediate_size, vision.use_clipped_linears
    queries, keys = vision.num_attention_heads * vision.head_dim, vision.num_key_value_heads * vision.head_dim
    shapes: Shapes = {f"{norm}.weight": (hidden,) for norm in NORMS}
    shapes |= {f"self_attn.{norm}.weight": (vision.head_dim,) for norm in ("q_norm", "k_norm")}
    shapes |= clipped("self_attn.q_proj", (queries, hidden), clip)
    shapes |= clipped("self_attn.k_proj", (keys, hidden), clip)
    shapes |= clipped("self_attn.v_proj", (keys, hidden), clip)
    shapes |= clipped("self_attn.o_proj", (hidden, queries), clip)
    shapes |= clipped("mlp.gate_proj", (wide, hidden), clip) | clipped("mlp.up_proj", (wide, hidden), clip)
    return shapes | clipped("mlp.down_proj", (hidden, wide), clip)


def random_values(name: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """See ``ModalityTower.random_values``."""
    if name.endswith("position_embedding_table"):
        return 0.0, 0.125
    return (0.0, 0.1) if name.endswith("std_bias") else random_bound(name)
