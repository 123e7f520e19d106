"""Video prompts for tinygrad-gemma4: frames are sampled, timestamped, and encoded by the checkpoint's vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma4_core import Context, MediaProcessor, ModalityTower, Option, Tower, WeightSource, hookimpl
from gemma4_video.sampling import BEGIN, BUDGETS, END, PLACEHOLDER

if TYPE_CHECKING:
    from gemma4_core import GemmaModel
    from gemma4_core.config import GemmaConfig

VISION, VISION_PART = "vision", "vision_config"
"""The modality whose preprocessing and tower handle the frames, and its part of config.json."""


def _matches(context: Context) -> bool:
    config = context.config
    return config is not None and VISION_PART in config.media and config.video_token_id is not None


def _processor(context: Context, options: Mapping[str, Any]) -> MediaProcessor:
    from gemma4_video.processor import VideoProcessor

    return VideoProcessor(context, options)


def _build(model: GemmaModel, source: WeightSource) -> Tower:
    from gemma4_video.tower import VideoTower

    return VideoTower(model.towers[VISION])


def _token_ids(config: GemmaConfig) -> dict[str, int]:
    ids = {BEGIN: config.boi_token_id, PLACEHOLDER: config.video_token_id, END: config.eoi_token_id}
    return {text: number for text, number in ids.items() if number is not None}


def _soft_token_id(config: GemmaConfig) -> int:
    return -1 if config.video_token_id is None else config.video_token_id


@hookimpl
def gemma4_modality_towers() -> list[ModalityTower]:
    """The video modality."""
    return [
        ModalityTower(
            name="video",
            summary="video files, animated images and folders of frames, through the vision tower",
            processor=_processor,
            build=_build,
            tensors=lambda config: {},
            placeholder=PLACEHOLDER,
            soft_token_id=_soft_token_id,
            media_option=Option("--video", "A video file, animated GIF or WebP, or folder of frames; may be repeated.",
                                multiple=True, metavar="PATH"),
            media_keyword="videos",
            token_ids=_token_ids,
            options=(
                Option("--video-frames", "Maximum frames sampled from a video (32, or the folder's value).", type=int),
                Option("--video-tokens", "Maximum soft tokens per frame (70, or the folder's value).",
                       type=int, choices=BUDGETS),
                Option("--video-fps", "Frames per second of folders and arrays (24).", type=float),
            ),
            keywords=("pixel_values_videos", "video_position_ids"),
            bidirectional=True,
            placed="before",
            amount=lambda features: (len(features["pixel_values_videos"]), "frame"),
            requires=(VISION,),
            matches=_matches,
        )
    ]
