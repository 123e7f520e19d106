"""``vision_config`` of config.json. Defaults follow transformers 5.23.0."""

from __future__ import annotations

from dataclasses import dataclass

from gemma4_core.config import GemmaConfig, Section

PART = "vision_config"
LARGEST = 1 << 20
"""Bound of every width."""


@dataclass(frozen=True)
class VisionConfig:
    """``vision_config``: a transformer over image patches."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    patch_size: int
    pooling_kernel_size: int
    position_embedding_size: int
    default_output_length: int
    """Soft tokens per image unless the processor config says otherwise."""
    use_clipped_linears: bool
    standardize: bool
    rope_theta: float
    rms_norm_eps: float


def vision_config(config: GemmaConfig) -> VisionConfig | None:
    """A checkpoint's vision tower, None where it has none. Raises ConfigError naming key and value."""
    section = config.part(PART)
    return None if section is None else parse_vision(section)


def parse_vision(section: Section) -> VisionConfig:
    """Read and check ``vision_config``. Raises ConfigError naming key and value."""
    section.only("model_type", ("gemma4_vision",), "gemma4_vision")
    section.only("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    section.only("attention_bias", (False,), False)
    rope = section.child("rope_parameters", default={}) or section
    rope.only("rope_type", ("default", "axial"), rope.get("type", "axial"))
    theta = section.number("rope_theta", 100.0, 1.0, 1e12)
    config = VisionConfig(
        hidden_size=section.integer("hidden_size", 768, 1, LARGEST),
        intermediate_size=section.integer("intermediate_size", 3072, 1, LARGEST),
        num_hidden_layers=section.integer("num_hidden_layers", 16, 1, 1024),
        num_attention_heads=section.integer("num_attention_heads", 12, 1, 4096),
        num_key_value_heads=section.integer("num_key_value_heads", 12, 1, 4096),
        head_dim=section.integer("head_dim", 64, 4, 8192),
        patch_size=section.integer("patch_size", 16, 1, 256),
        pooling_kernel_size=section.integer("pooling_kernel_size", 3, 1, 64),
        position_embedding_size=section.integer("position_embedding_size", 10_240, 1, LARGEST),
        default_output_length=section.integer("default_output_length", 280, 1, LARGEST),
        use_clipped_linears=section.flag("use_clipped_linears"),
        standardize=section.flag("standardize"),
        rope_theta=rope.number("rope_theta", theta, 1.0, 1e12),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6, 0.0, 1.0),
    )
    if config.head_dim % 4:
        raise section.fault("head_dim", "two-dimensional rotary embedding needs a multiple of 4", config.head_dim)
    if config.num_attention_heads % config.num_key_value_heads:
        reason = f"it must be a multiple of num_key_value_heads, which is {config.num_key_value_heads}"
        raise section.fault("num_attention_heads", reason, config.num_attention_heads)
    return config
