"""Modality towers and their processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gemma4_core.contracts.context import Context, Matches, Option, always
from gemma4_core.contracts.formats import WeightSource

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor

    from gemma4_core.config import GemmaConfig
    from gemma4_core.model import GemmaModel


@dataclass(frozen=True)
class PreparedMedia:
    """Media of one prompt made ready for a tower."""

    features: Mapping[str, np.ndarray]
    """Plain arrays by ``forward_ids`` keyword."""
    expansions: Sequence[str]
    """One text per medium that replaces its placeholder: begin token, soft tokens, end token, …"""
    soft_tokens: Sequence[int]
    """How many soft tokens each medium takes."""
    seconds: Sequence[float] = ()
    """How long each medium lasts, for media that last; used in statistics."""


class MediaProcessor(Protocol):
    """Reads media and makes features; needs no weights."""

    def load(self, source: Any) -> Any:
        """Read one medium and do the costly work on it: the result may be cached and used again.

        Files, bytes, URLs and standard input come as ``gemma4_core.processing.MediaSource``; arrays and library
        objects come as they were given. Raises InputError naming the source.
        """

    def prepare(self, items: Sequence[Any]) -> PreparedMedia:
        """Features of loaded media, in order."""


class Tower(Protocol):
    """An assembled tower with its weights."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Its tensors by full checkpoint name (empty for a tower that borrows another's weights)."""

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        """Soft tokens of each medium in order, ``[n, hidden]`` in the model's dtype.

        Without ``capture`` gradients flow to the tower's weights. With it nothing is differentiated: the tower may
        run captured graphs and return cached tokens of equal media. Raises InputError for features that are
        not of the tower's making.
        """

    def digests(self, features: Mapping[str, Any]) -> list[bytes]:
        """A content hash of each medium in order: equal hashes mean equal soft tokens."""

    def forget(self) -> None:
        """Drop cached tokens and captured graphs, after weights have changed.

        A tower may also have ``forget_tokens()``, which drops the tokens alone: for values that were written into the
        tensors that were there.
        A tower may also have ``places``, its matrices by full checkpoint name in ``Weight`` holders as the model's
        own: a transform can then exchange them.
        """


@dataclass(frozen=True)
class ModalityTower:
    """A modality. ``matches`` says whether config.json declares it."""

    name: str
    summary: str
    processor: Callable[[Context, Mapping[str, Any]], MediaProcessor]
    """Build the processor from the folder's processor config and the values of ``options`` by keyword."""
    build: Callable[[GemmaModel, WeightSource], Tower]
    """Build the tower on the model's device in ``model.dtype``. ``model.towers`` holds those built before."""
    tensors: Callable[[GemmaConfig], Mapping[str, tuple[int, ...]]]
    """Every checkpoint tensor that the tower needs, by full name with its shape."""
    placeholder: str
    """What stands for one medium in a prompt, such as ``<|image|>``."""
    soft_token_id: Callable[[GemmaConfig], int]
    """The id that its soft tokens carry in the prompt."""
    media_option: Option
    """The option that takes media, such as ``--image``; its keyword in Python is ``media_keyword``."""
    media_keyword: str
    """The argument of ``prepare_inputs`` and ``stream_generate``, such as ``images``."""
    token_ids: Callable[[GemmaConfig], Mapping[str, int]] | None = None
    """The ids of the special tokens in its expansions by their text, for folders whose tokenizer lacks them;
    None means the placeholder alone."""
    options: tuple[Option, ...] = ()
    """Further options, such as ``--image-tokens``."""
    keywords: tuple[str, ...] = ()
    """The ``forward_ids`` keywords, first the one that must be there."""
    bidirectional: bool = False
    """Whether tokens of one medium see each other where the config says ``use_bidirectional_attention: vision``."""
    placed: str = "before"
    """Where media without a placeholder go: ``before`` or ``after`` the text."""
    requires: tuple[str, ...] = ()
    """Names of towers that must be built first."""
    amount: Callable[[Mapping[str, Any]], tuple[float, str]] | None = None
    """How much media its features hold, and of what one, for statistics: ``(2, "image")``, ``(9.8, "second")``; None
    counts media as they come from ``Tower.encode``."""
    config: Callable[[GemmaConfig], Any] | None = None
    """Its own part of config.json, read with checks (see ``GemmaConfig.part``): an object with a field per key, such as
    ``num_hidden_layers`` and ``hidden_size``; None where the config declares no such tower. It is called as soon as a
    checkpoint that the tower matches is opened. Raises ConfigError naming key and value."""
    part: str | None = None
    """The key of config.json that this part stands under, such as ``vision_config``."""
    prefixes: tuple[str, ...] = ()
    """What the names of its tensors begin with. Stored tensors of such names are allowed where the config declares no
    such tower: they are left out."""
    random_values: Callable[[str, tuple[int, ...]], tuple[float, float] | None] | None = None
    """Mean and standard deviation of one of its tensors, by name and shape, in a checkpoint with random weights; None
    for tensors that are like the text model's. Matrices have mean 0."""
    matches: Matches = always
    priority: int = 0
