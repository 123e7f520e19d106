"""From a video to features and timestamped soft tokens. The vision modality's processor prepares the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_core import ConfigError, Context, InputError, PreparedMedia, registry
from gemma4_core.processing import processor_values
from gemma4_video.reading import read_frames
from gemma4_video.sampling import BUDGETS, DEFAULT_FRAMES, DEFAULT_TOKENS, expansion

SECTION, FLAT_FILE = "video_processor", "video_preprocessor_config.json"
MOST_FRAMES = 4096


@dataclass(frozen=True)
class Video:
    """One video, preprocessed."""

    frames: list[Any]
    """The frames as the vision processor loaded them."""
    times: list[float]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of the frames' arrays."""
        arrays = (value for frame in self.frames for value in vars(frame).values() if isinstance(value, np.ndarray))
        return sum(array.nbytes for array in arrays)


class VideoProcessor:
    """``MediaProcessor`` of videos."""

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        values = processor_values(context, SECTION, flat=FLAT_FILE)
        self.frames = self._number(options.get("video_frames"), values, "num_frames", DEFAULT_FRAMES, context)
        tokens = options.get("video_tokens") or values.get("max_soft_tokens") or DEFAULT_TOKENS
        if tokens not in BUDGETS:
            raise InputError(f"--video-tokens {tokens}: must be one of {', '.join(map(str, BUDGETS))}")
        self.fps = options.get("video_fps")
        self.allow_urls = bool(options.get("allow_urls", False))
        self.vision = registry.modalities["vision"].processor(context, {"image_tokens": tokens})

    @staticmethod
    def _number(given: Any, values: Mapping[str, Any], key: str, default: int, context: Context) -> int:
        number = given if given is not None else values.get(key) or default
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_FRAMES:
            if given is not None:
                raise InputError(f"--video-frames {given}: must be a whole number from 1 to {MOST_FRAMES}")
            raise ConfigError(f"{context.path}: {SECTION}.{key} {str(number)[:60]!r} must be a whole number from 1 "
                              f"to {MOST_FRAMES}")
        return number

    def load(self, source: Any) -> Video:
        """Read frames from one video. Raises InputError naming it."""
        found = read_frames(source, self.frames, self.fps, self.vision.load, self.allow_urls)
        return Video(found.images, found.times, found.seconds)

    def prepare(self, items: Sequence[Video]) -> PreparedMedia:
        """``pixel_values_videos`` and ``video_position_ids``: the frames of all videos one after another."""
        prepared = [self.vision.prepare(item.frames) for item in items]
        features = {
            "pixel_values_videos": np.concatenate([p.features["pixel_values"] for p in prepared]),
            "video_position_ids": np.concatenate([p.features["image_position_ids"] for p in prepared]),
        }
        texts = [expansion(item.times, p.soft_tokens) for item, p in zip(items, prepared, strict=True)]
        counts = [sum(p.soft_tokens) for p in prepared]
        return PreparedMedia(features, texts, counts, [item.seconds for item in items])
