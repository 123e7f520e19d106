"""Sound: reading, features, and the audio tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.contracts import Context, MediaProcessor, ModalityTower, Option, Tower, WeightSource
from gemma4_core.hookspecs import hookimpl
from gemma4_core.processing.arrays import as_array
from gemma4_plugins.modalities.audio.config import PART, audio_config
from gemma4_plugins.modalities.audio.features import MelSettings
from gemma4_plugins.modalities.audio.processor import BEGIN, END, KEYWORDS, PLACEHOLDER, AudioProcessor
from gemma4_plugins.modalities.audio.tensors import EMBEDDER, TOWER, audio_tensors, random_values

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.model.model import GemmaModel


FRAME_SECONDS = MelSettings.hop_length / MelSettings.rate
"""From one frame of features to the next, in every released checkpoint."""


def _amount(features: Mapping[str, Any]) -> tuple[float, str]:
    values, mask = (as_array(features[name], name) if name in features else None for name in KEYWORDS)
    assert values is not None
    frames = len(values) * values.shape[1] if mask is None else np.count_nonzero(mask)
    return round(frames * FRAME_SECONDS, 2), "second"


def _matches(context: Context) -> bool:
    return context.config is not None and PART in context.config.media


def _processor(context: Context, options: Mapping[str, Any]) -> MediaProcessor:
    return AudioProcessor(context, options)


def _build(model: GemmaModel, source: WeightSource) -> Tower:
    from gemma4_plugins.modalities.audio.tower import AudioTower

    return AudioTower(model, source)


def _soft_token_id(config: GemmaConfig) -> int:
    return -1 if config.audio_token_id is None else config.audio_token_id


def _token_ids(config: GemmaConfig) -> dict[str, int]:
    ids = {BEGIN: config.boa_token_id, PLACEHOLDER: config.audio_token_id, END: config.eoa_token_id}
    return {text: number for text, number in ids.items() if number is not None}


@hookimpl
def gemma4_modality_towers() -> list[ModalityTower]:
    """The audio modality."""
    return [
        ModalityTower(
            name="audio",
            summary="sound, through the checkpoint's audio tower",
            processor=_processor,
            build=_build,
            tensors=audio_tensors,
            placeholder=PLACEHOLDER,
            soft_token_id=_soft_token_id,
            media_option=Option("--audio", "A sound file (- is standard input); may be repeated.", multiple=True,
                                metavar="FILE"),
            media_keyword="audio",
            token_ids=_token_ids,
            options=(
                Option("--audio-truncate", "Use the beginning of a clip that is too long.", type=bool, default=False),
            ),
            keywords=KEYWORDS,
            placed="after",
            amount=_amount,
            config=audio_config,
            part=PART,
            prefixes=(TOWER, EMBEDDER),
            random_values=random_values,
            matches=_matches,
        )
    ]
