"""Log-mel features, to the numbers of transformers 5.23.0 (``models/gemma4/feature_extraction_gemma4.py``,
``audio_utils.mel_filter_bank``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PAD_MULTIPLE = 128
"""A clip is padded with silence to a multiple of it, in samples."""


@dataclass(frozen=True)
class MelSettings:
    """How sound becomes frames of mel energies. Lengths in samples, frequencies in Hz."""

    bins: int = 128
    rate: int = 16_000
    frame_length: int = 320
    hop_length: int = 160
    min_frequency: float = 0.0
    max_frequency: float = 8000.0
    mel_floor: float = 1e-3

    @property
    def fft_length(self) -> int:
        """The power of two from ``frame_length``."""
        return 1 << (self.frame_length - 1).bit_length()

    @property
    def shortest(self) -> int:
        """Samples of the shortest clip that gives a valid frame."""
        return self.frame_length + 1 - self.frame_length // 2


@lru_cache(maxsize=8)
def mel_filters(settings: MelSettings) -> np.ndarray:
    """Triangular filters float64 ``[fft_length / 2 + 1, bins]`` on the HTK mel scale, triangles in Hz, not normalised.
    With the released settings filter 0 lies between two frequencies and is all zero."""
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (settings.min_frequency, settings.max_frequency))
    corners = 700.0 * (10.0 ** (np.linspace(low, high, settings.bins + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0, settings.rate // 2, settings.fft_length // 2 + 1)
    width = np.diff(corners)
    slopes = corners[None, :] - frequencies[:, None]  # [frequencies, bins + 2]
    return np.maximum(0.0, np.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]))


def log_mel(sound: np.ndarray, settings: MelSettings) -> tuple[np.ndarray, np.ndarray]:
    """Features fp32 ``[frames, bins]`` and validity bool ``[frames]`` of mono ``sound`` fp32 ``[n]`` at settings.rate.

    Half a frame of silence is put in front. A frame is valid when all its samples and one more are sound; features
    of the others are 0.
    """
    length, hop, lead = settings.frame_length, settings.hop_length, settings.frame_length // 2
    padded_length = -(-len(sound) // PAD_MULTIPLE) * PAD_MULTIPLE
    padded = np.pad(sound.astype(np.float32), (lead, padded_length - len(sound)))
    if len(padded) < length + 1:
        return np.zeros((0, settings.bins), np.float32), np.zeros(0, np.bool_)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::hop, :-1]  # [frames, length]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(frames * window, n=settings.fft_length, axis=-1))
    logs = np.log(magnitude @ mel_filters(settings) + settings.mel_floor).astype(np.float32)
    valid = np.arange(len(frames)) * hop + length < lead + len(sound)
    return logs * valid[:, None], valid


def token_count(valid_frames: int) -> int:
    """Soft tokens of a clip: two convolutions of stride 2."""
    return (valid_frames + 3) // 4
