"""The video tower: the vision tower, frame by frame. It has no weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinygrad import Tensor

from gemma4_core import InputError, Tower

RENAMED = {"pixel_values_videos": "pixel_values", "video_position_ids": "image_position_ids"}
"""From this tower's keywords to those of the vision tower."""


class VideoTower:
    """Encodes frames with the vision tower."""

    def __init__(self, vision: Tower) -> None:
        self.vision = vision

    def parameters(self) -> Mapping[str, Tensor]:
        """None: the vision tower owns them."""
        return {}

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        """Soft tokens of each frame in order."""
        return self.vision.encode(self._renamed(features), capture=capture)

    def digests(self, features: Mapping[str, Any]) -> list[bytes]:
        """A content hash of each frame."""
        return self.vision.digests(self._renamed(features))

    def forget(self) -> None:
        """It keeps nothing."""

    @staticmethod
    def _renamed(features: Mapping[str, Any]) -> dict[str, Any]:
        missing = [name for name in RENAMED if features.get(name) is None]
        if missing:
            raise InputError(f"{missing[0]} is missing; pass {' and '.join(RENAMED)} as the processor returns them")
        return {theirs: features[ours] for ours, theirs in RENAMED.items()}
