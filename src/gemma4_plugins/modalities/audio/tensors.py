"""The audio tower's tensors by full checkpoint name, with their shapes and what random ones are like."""

from __future__ import annotations

import math

from gemma4_core.config import GemmaConfig
from gemma4_plugins.modalities.audio.config import AudioConfig, audio_config
from gemma4_plugins.modalities.clipped_tensors import Shapes, clipped, random_bound

TOWER, EMBEDDER = "model.audio_tower.", "model.embed_audio."


def audio_tensors(config: GemmaConfig) -> Shapes:
    """The audio tower's tensors and its embedder; none where the config has no tower."""
    audio = audio_config(config)
    if audio is None:
        return {}
    hidden, (first, second) = audio.hidden_size, audio.subsampling_conv_channels
    shapes: Shapes = {
        "subsample_conv_projection.layer0.conv.weight": (first, 1, 3, 3),
        "subsample_conv_projection.layer0.norm.weight": (first,),
        "subsample_conv_projection.layer1.conv.weight": (second, first, 3, 3),
        "subsample_conv_projection.layer1.norm.weight": (second,),
        # the reference writes the 32 frequencies left of 128 mel bins as a quarter of the first channel count
        "subsample_conv_projection.input_proj_linear.weight": (hidden, first // 4 * second),
        "output_proj.weight": (audio.output_proj_dims, hidden),
        "output_proj.bias": (audio.output_proj_dims,),
    }
    for index in range(audio.num_hidden_layers):
        tensors = audio_layer_tensors(audio)
        shapes |= {f"layers.{index}.{name}": shape for name, shape in tensors.items()}
    shapes = {TOWER + name: shape for name, shape in shapes.items()}
    return shapes | {f"{EMBEDDER}embedding_projection.weight": (config.text_config.hidden_size, audio.output_proj_dims)}


def audio_layer_tensors(audio: AudioConfig) -> Shapes:
    """One conformer layer, by name below the layer."""
    hidden, clip = audio.hidden_size, audio.use_clipped_linears
    shapes: Shapes = {}
    for part in ("feed_forward1", "feed_forward2"):
        shapes |= clipped(f"{part}.ffw_layer_1", (4 * hidden, hidden), clip)
        shapes |= clipped(f"{part}.ffw_layer_2", (hidden, 4 * hidden), clip)
        shapes |= {f"{part}.{norm}.weight": (hidden,) for norm in ("pre_layer_norm", "post_layer_norm")}
    for part in ("q_proj", "k_proj", "v_proj", "post"):
        shapes |= clipped(f"self_attn.{part}", (hidden, hidden), clip)
    shapes["self_attn.relative_k_proj.weight"] = (hidden, hidden)
    shapes["self_attn.per_dim_scale"] = (audio.head_dim,)
    shapes |= clipped("lconv1d.linear_start", (2 * hidden, hidden), clip)
    shapes |= clipped("lconv1d.linear_end", (hidden, hidden), clip)
    shapes["lconv1d.depthwise_conv1d.weight"] = (hidden, 1, audio.conv_kernel_size)
    shapes |= {f"lconv1d.{norm}.weight": (hidden,) for norm in ("pre_layer_norm", "conv_norm")}
    return shapes | {f"{norm}.weight": (hidden,) for norm in ("norm_pre_attn", "norm_post_attn", "norm_out")}


def random_values(name: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """See ``ModalityTower.random_values``."""
    *_, module, kind = name.split(".")
    if kind in ("per_dim_scale", "bias"):
        return 0.0, 0.1
    if "conv" in module and len(shape) > 1:
        # each output reads a whole kernel
        return 0.0, math.prod(shape[1:]) ** -0.5
    return random_bound(name)
