"""Images: reading, preprocessing, and the vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import Context, MediaProcessor, ModalityTower, Option, Tower, WeightSource
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.modalities.vision.config import PART, vision_config
from gemma4_plugins.modalities.vision.preprocess import BEGIN, BUDGETS, END, PLACEHOLDER, ImageProcessor
from gemma4_plugins.modalities.vision.tensors import EMBEDDER, TOWER, random_values, vision_tensors

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.model.model import GemmaModel


def _matches(context: Context) -> bool:
    return context.config is not None and PART in context.config.media


def _processor(context: Context, options: Mapping[str, Any]) -> MediaProcessor:
    return ImageProcessor(context, options)


def _build(model: GemmaModel, source: WeightSource) -> Tower:
    from gemma4_plugins.modalities.vision.tower import VisionTower

    return VisionTower(model, source)


def _soft_token_id(config: GemmaConfig) -> int:
    return -1 if config.image_token_id is None else config.image_token_id


def _token_ids(config: GemmaConfig) -> dict[str, int]:
    ids = {BEGIN: config.boi_token_id, PLACEHOLDER: config.image_token_id, END: config.eoi_token_id}
    return {text: number for text, number in ids.items() if number is not None}


@hookimpl
def gemma4_modality_towers() -> list[ModalityTower]:
    """The vision modality."""
    return [
        ModalityTower(
            name="vision",
            summary="images, through the checkpoint's vision tower",
            processor=_processor,
            build=_build,
            tensors=vision_tensors,
            placeholder=PLACEHOLDER,
            soft_token_id=_soft_token_id,
            media_option=Option("--image", "An image file (- is standard input); may be repeated.", multiple=True,
                                metavar="FILE"),
            media_keyword="images",
            token_ids=_token_ids,
            options=(
                Option("--image-tokens", "Soft tokens that an image may take at most.", type=int, choices=BUDGETS),
            ),
            keywords=("pixel_values", "image_position_ids"),
            bidirectional=True,
            placed="before",
            amount=lambda features: (len(features["pixel_values"]), "image"),
            config=vision_config,
            part=PART,
            prefixes=(TOWER, EMBEDDER),
            random_values=random_values,
            matches=_matches,
        )
    ]
