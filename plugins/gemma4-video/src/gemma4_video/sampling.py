"""Which frames are sampled, and how a video is written into the prompt (transformers 5.23.0, ``video_utils`` and
``models/gemma4/processing_gemma4.py``)."""

from __future__ import annotations

from collections.abc import Sequence

PLACEHOLDER = "<|video|>"
BEGIN, END = "<|image>", "<image|>"
BUDGETS = (70, 140, 280, 560, 1120)
DEFAULT_FRAMES, DEFAULT_TOKENS = 32, 70
DEFAULT_FPS = 24.0
"""Frame rate if a video does not declare one, as in transformers."""


def sample_indices(total: int, wanted: int) -> list[int]:
    """At most ``wanted`` frames of ``total``, evenly spread from the first; all of them if there are fewer.
    (transformers refuses a video with fewer frames.)"""
    count = min(total, wanted)
    return [k * total // count for k in range(count)]


def timestamp(seconds: float) -> str:
    """Minutes and seconds, rounded down: ``01:07``."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def expansion(seconds: Sequence[float], soft_tokens: Sequence[int]) -> str:
    """What replaces the placeholder: for each frame its time and its soft tokens, joined by spaces."""
    return " ".join(
        f"{timestamp(time)} {BEGIN}{PLACEHOLDER * count}{END}" for time, count in zip(seconds, soft_tokens, strict=True)
    )
