"""From sound to features and soft-token counts, with the settings of the checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_core.contracts import Context, PreparedMedia
from gemma4_core.errors import ConfigError, InputError
from gemma4_core.formatting import is_number, shown
from gemma4_core.processing.settings import file_values, processor_values
from gemma4_plugins.modalities.audio.config import audio_config
from gemma4_plugins.modalities.audio.decode import HIGHEST_RATE, LOWEST_RATE, Limits, read_sound
from gemma4_plugins.modalities.audio.features import MelSettings, log_mel, token_count

KEYWORDS = ("input_features", "input_features_mask")
PLACEHOLDER = "<|audio|>"
BEGIN, END = "<|audio>", "<audio|>"
MAX_TOKENS, MILLISECONDS_PER_TOKEN = 750, 40
"""The longest clip is their product, 30 s."""
SECTION = "feature_extractor"
MAX_VALUES = 1 << 26
"""Samples of all overlapping frames of a clip, and weights of all mel filters; released settings have a million."""
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "preemphasis": (0, 0.0, None),
    "fft_overdrive": (False, None),
    "dither": (0, 0.0, None),
    "input_scale_factor": (1, 1.0, None),
    "per_bin_mean": (None,),
    "per_bin_stddev": (None,),
}
"""Settings of the feature extractor that have one supported meaning: off."""


@dataclass(frozen=True)
class Clip:
    """One clip made into features."""

    features: np.ndarray
    """fp32 ``[frames, mel]``"""
    valid: np.ndarray
    """bool ``[frames]``"""
    seconds: float


def _number(values: Mapping[str, Any], key: str, default: float, low: float, high: float, where: Any) -> float:
    value = values.get(key, default)
    if not is_number(value) or not low <= value <= high:
        raise ConfigError(f"{where}: {SECTION}.{key} {shown(value, 60)} must be a number from {low:g} to {high:g}")
    return value


def read_settings(context: Context) -> tuple[MelSettings, float]:
    """Mel settings and the longest clip in seconds, from the folder's files or built in. Raises ConfigError."""
    values = processor_values(context, SECTION)
    where = context.path or "processor settings"
    for key, allowed in UNSUPPORTED.items():
        if values.get(key) not in allowed:
            found = shown(values[key], 60)
            raise ConfigError(f"{where}: {SECTION}.{key} {found} is not supported; expected {allowed[0]}")
    rate = int(_number(values, "sampling_rate", 16_000, LOWEST_RATE, HIGHEST_RATE, where))
    audio = audio_config(context.config) if context.config is not None else None
    # two convolutions of stride 2 leave a quarter of the bins, and the projection expects a quarter of its channels
    bins = audio.subsampling_conv_channels[0] if audio is not None else 128
    settings = MelSettings(
        bins=int(_number(values, "feature_size", bins, 1, 4096, where)),
        rate=rate,
        frame_length=round(rate * _number(values, "frame_length_ms", 20.0, 1, 1000, where) / 1000),
        hop_length=round(rate * _number(values, "hop_length_ms", 10.0, 1, 1000, where) / 1000),
        min_frequency=float(_number(values, "min_frequency", 0.0, 0, rate, where)),
        max_frequency=float(_number(values, "max_frequency", 8000.0, 1, rate, where)),
        mel_floor=float(_number(values, "mel_floor", 1e-3, 1e-30, 1e3, where)),
    )
    whole = file_values(context, "processor_config.json")
    tokens = _number(whole, "audio_seq_length", MAX_TOKENS, 1, 1 << 20, where)
    seconds = tokens * _number(whole, "audio_ms_per_token", MILLISECONDS_PER_TOKEN, 1, 10_000, where) / 1000
    windows = seconds * settings.rate * settings.frame_length / settings.hop_length
    if windows > MAX_VALUES or settings.fft_length * settings.bins > MAX_VALUES:
        raise ConfigError(f"{where}: clips of {seconds:g} s at {settings.rate} Hz in frames of {settings.frame_length} "
                          f"samples every {settings.hop_length}, {settings.bins} features each, take gigabytes; lower "
                          f"audio_seq_length, or {SECTION}.frame_length_ms, sampling_rate or feature_size")
    return settings, seconds


class AudioProcessor:
    """``MediaProcessor`` of sound."""

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        self.settings, seconds = read_settings(context)
        self.limits = Limits(self.settings.rate, seconds, bool(options.get("audio_truncate", False)))
        self.allow_urls = bool(options.get("allow_urls", False))

    def load(self, source: Any) -> Clip:
        """Read one clip and make its features. Raises InputError naming it."""
        sound, name = read_sound(source, self.limits, self.allow_urls)
        features, valid = log_mel(sound, self.settings)
        if not valid.any():
            raise InputError(f"{name}: {len(sound)} samples at {self.settings.rate} Hz are too short; a clip needs at "
                             f"least {self.settings.shortest}")
        return Clip(features, valid, len(sound) / self.settings.rate)

    def prepare(self, items: Sequence[Clip]) -> PreparedMedia:
        """``input_features`` fp32 ``[clips, frames, mel]`` and ``input_features_mask`` bool ``[clips, frames]``, padded
        with 0 and False to the longest clip."""
        frames = max(len(item.features) for item in items)
        features = np.zeros((len(items), frames, self.settings.bins), np.float32)
        mask = np.zeros((len(items), frames), np.bool_)
        for index, item in enumerate(items):
            features[index, : len(item.features)] = item.features
            mask[index, : len(item.valid)] = item.valid
        counts = [token_count(int(item.valid.sum())) for item in items]
        texts = [BEGIN + PLACEHOLDER * count + END for count in counts]
        arrays = dict(zip(KEYWORDS, (features, mask), strict=True))
        return PreparedMedia(arrays, texts, counts, [item.seconds for item in items])
