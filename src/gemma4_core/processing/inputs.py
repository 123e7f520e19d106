"""What ``prepare_inputs`` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gemma4_core.text.literal import LiteralText


@dataclass(frozen=True)
class Medium:
    """One medium of a prompt."""

    modality: str
    soft_tokens: int
    seconds: float | None = None
    """How long it lasts, for media that last."""


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt before media are expanded and ids are made of it."""

    text: str
    """With one placeholder for each medium; hidden characters are stand-ins of ``literal``."""
    media: Mapping[str, Sequence[Any]]
    """By modality, in the order of their placeholders."""
    options: Mapping[str, Any]
    """Options of modalities for this prompt."""
    literal: LiteralText | None = None
    """What hid the texts of people and tools; None where special tokens in them count."""
    messages: Sequence[Mapping[str, Any]] = ()
    """What the chat template was given."""
    again: Callable[[Sequence[Mapping[str, Any]], bool], str] | None = None
    """Renders other messages, with or without the opening of the model's turn, all else being equal."""


@dataclass(frozen=True)
class PreparedInputs:
    """A prompt ready for the model. ``features`` holds everything that the modalities made, by ``forward_ids``
    keyword; each is also an attribute, None where the prompt has no such medium."""

    input_ids: list[int]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    media: tuple[Medium, ...] = ()
    """In the order of their placeholders, modality by modality."""
    keywords: frozenset[str] = field(default_factory=frozenset, repr=False)
    """Feature names that may be absent."""
    sources: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    """The media as they were given, by modality, in the order of their placeholders."""

    @property
    def pixel_values(self) -> np.ndarray | None:
        """fp32 ``[images, patches, 3 * patch_size ** 2]`` in 0..1."""
        return self.features.get("pixel_values")

    @property
    def image_position_ids(self) -> np.ndarray | None:
        """int64 ``[images, patches, 2]``: x and y, -1 is padding."""
        return self.features.get("image_position_ids")

    @property
    def input_features(self) -> np.ndarray | None:
        """fp32 ``[clips, frames, mel]``."""
        return self.features.get("input_features")

    @property
    def input_features_mask(self) -> np.ndarray | None:
        """bool ``[clips, frames]``: True is valid."""
        return self.features.get("input_features_mask")

    def __getattr__(self, name: str) -> np.ndarray | None:
        if not name.startswith("_") and (name in self.features or name in self.keywords):
            return self.features.get(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
