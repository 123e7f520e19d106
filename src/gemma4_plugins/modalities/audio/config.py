"""``audio_config`` of config.json. Defaults follow transformers 5.23.0."""

from __future__ import annotations

from dataclasses import dataclass

from gemma4_core.config import GemmaConfig, Section

PART = "audio_config"
LARGEST = 1 << 20
"""Bound of every width."""


@dataclass(frozen=True)
class AudioConfig:
    """``audio_config``: a conformer over mel frames."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    conv_kernel_size: int
    subsampling_conv_channels: tuple[int, int]
    residual_weight: float
    attention_chunk_size: int
    attention_context_left: int
    attention_context_right: int
    attention_logit_cap: float
    attention_invalid_logits_value: float
    gradient_clipping: float
    use_clipped_linears: bool
    output_proj_dims: int
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def audio_config(config: GemmaConfig) -> AudioConfig | None:
    """A checkpoint's audio tower, None where it has none. Raises ConfigError naming key and value."""
    section = config.part(PART)
    return None if section is None else parse_audio(section)


def parse_audio(section: Section) -> AudioConfig:
    """Read and check ``audio_config``. Raises ConfigError naming key and value."""
    section.only("model_type", ("gemma4_audio",), "gemma4_audio")
    section.only("hidden_act", ("silu",), "silu")
    config = AudioConfig(
        hidden_size=section.integer("hidden_size", 1024, 2, LARGEST),
        num_hidden_layers=section.integer("num_hidden_layers", 12, 1, 1024),
        num_attention_heads=section.integer("num_attention_heads", 8, 1, 4096),
        conv_kernel_size=section.integer("conv_kernel_size", 5, 1, 256),
        subsampling_conv_channels=conv_channels(section),
        residual_weight=section.number("residual_weight", 0.5, 0.0, 1e6),
        attention_chunk_size=section.integer("attention_chunk_size", 12, 1, LARGEST),
        attention_context_left=section.integer("attention_context_left", 13, 1, LARGEST),
        attention_context_right=section.integer("attention_context_right", 0, 0, LARGEST),
        attention_logit_cap=section.number("attention_logit_cap", 50.0, 0.0, 1e9),
        attention_invalid_logits_value=section.number("attention_invalid_logits_value", -1e9, -1e38, 0.0),
        gradient_clipping=section.number("gradient_clipping", 1e10, 0.0, 1e38),
        use_clipped_linears=section.flag("use_clipped_linears", default=True),
        output_proj_dims=section.integer("output_proj_dims", 1536, 1, LARGEST),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6, 0.0, 1.0),
    )
    if config.hidden_size % config.num_attention_heads or config.hidden_size % 2:
        reason = f"it must be even and a multiple of num_attention_heads, which is {config.num_attention_heads}"
        raise section.fault("hidden_size", reason, config.hidden_size)
    return config


def conv_channels(section: Section) -> tuple[int, int]:
    """Channels of the two convolutions; a quarter of the first number goes into the projection's width."""
    key = "subsampling_conv_channels"
    value = section.get(key, [128, 32])
    sound = isinstance(value, list) and len(value) == 2
    if not sound or any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= 65_536 for v in value):
        raise section.fault(key, "it must be a list of two whole numbers from 1 to 65536")
    if value[0] % 4:
        raise section.fault(key, "the first number must be a multiple of 4")
    return value[0], value[1]
