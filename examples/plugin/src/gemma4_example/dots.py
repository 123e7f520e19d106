"""Modality ``dots``: numbers. Each number becomes one soft token, the number times a learned direction.

config.json declares it with ``"dots_token_id": ID``; the checkpoint holds ``model.dots.direction [hidden]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core import Context, InputError, ModalityTower, Option, PreparedMedia, hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core import GemmaModel, WeightSource

PLACEHOLDER = "<|dots|>"
DIRECTION = "model.dots.direction"
MOST = 64


class DotsProcessor:
    """Reads numbers; ``--dots-scale`` multiplies them."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def load(self, source: Any) -> np.ndarray:
        """Numbers from a file of words, or from a sequence. Raises InputError naming the source."""
        try:
            if hasattr(source, "open"):
                with source.open() as file:
                    source, name = file.read(4096).split(), str(source)
            else:
                name = "dots"
            numbers = np.array([float(word) for word in source], np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{str(source)[:100]}: holds something else than numbers: {str(error)[:100]}") from error
        if not 0 < len(numbers) <= MOST or not np.isfinite(numbers).all():
            raise InputError(f"{name}: 1 to {MOST} finite numbers are expected, not {len(numbers)}")
        return numbers

    def prepare(self, items: Sequence[np.ndarray]) -> PreparedMedia:
        """``dot_values [media, most numbers]``, NaN where a medium has fewer."""
        values = np.full((len(items), max(map(len, items))), np.nan, np.float32)
        for row, numbers in zip(values, items, strict=True):
            row[: len(numbers)] = numbers * self.scale
        counts = [len(numbers) for numbers in items]
        return PreparedMedia({"dot_values": values}, [PLACEHOLDER * count for count in counts], counts)


class DotsTower:
    """The direction ``[hidden]`` that numbers are multiplied with."""

    def __init__(self, direction: Tensor) -> None:
        self.direction = direction

    def parameters(self) -> Mapping[str, Tensor]:
        return {DIRECTION: self.direction}

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        from tinygrad import Tensor

        columns = [Tensor(numbers[:, None], device=self.direction.device) for numbers in _rows(features)]  # [n, 1]
        return [(column * self.direction).cast(self.direction.dtype) for column in columns]  # [n, hidden]

    def digests(self, features: Mapping[str, Any]) -> list[bytes]:
        return [hashlib.sha256(numbers.tobytes()).digest() for numbers in _rows(features)]

    def forget(self) -> None:
        """Nothing is kept."""


def _rows(features: Mapping[str, Any]) -> list[np.ndarray]:
    """The numbers of each medium without padding."""
    given = features["dot_values"]
    values = np.asarray(given.numpy() if hasattr(given, "numpy") else given, np.float32)
    if values.ndim != 2:
        raise InputError(f"dot_values has shape {list(values.shape)}; [media, numbers] is expected")
    return [row[~np.isnan(row)] for row in values]


def processor(context: Context, options: Mapping[str, Any]) -> DotsProcessor:
    scale = options.get("dots_scale")
    return DotsProcessor(1.0 if scale is None else float(scale))


def build(model: GemmaModel, source: WeightSource) -> DotsTower:
    return DotsTower(source.tensor(DIRECTION, model.device, model.dtype))


@hookimpl
def gemma4_modality_towers() -> list[ModalityTower]:
    return [
        ModalityTower(
            name="dots",
            summary="numbers, one soft token each",
            processor=processor,
            build=build,
            tensors=lambda config: {DIRECTION: (config.text_config.hidden_size,)},
            placeholder=PLACEHOLDER,
            soft_token_id=lambda config: int(config.raw["dots_token_id"]),
            media_option=Option("--dots", "File with numbers.", multiple=True, metavar="FILE"),
            media_keyword="dots",
            options=(Option("--dots-scale", "Multiply the numbers by this.", type=float, default=1.0),),
            keywords=("dot_values",),
            matches=lambda context: isinstance(context.raw_config.get("dots_token_id"), int),
        )
    ]
