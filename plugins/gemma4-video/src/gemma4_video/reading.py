"""Sampled frames of a video: files through PyAV, animated images through Pillow, folders of frames, arrays.

Sizes and lengths are checked before frames are decoded, and no more frames are held than are taken.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_core import InputError
from gemma4_core.processing import MediaSource, resolve
from gemma4_video.sampling import DEFAULT_FPS, sample_indices

MAX_FRAMES = 250_000
"""Longest video in frames: more than two hours at 30 frames per second."""
MAX_FRAME_PIXELS = 8192 * 8192
ANIMATED = ("GIF", "WEBP", "PNG")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


@dataclass(frozen=True)
class Frames:
    """Frames that were taken from a video."""

    images: list[Any]
    """Pillow images, arrays ``[H, W, 3]``, or paths."""
    times: list[float]
    """When each is shown, in seconds."""
    seconds: float
    """How long the whole video lasts."""
    name: str


def read_frames(source: Any, wanted: int, fps: float | None, allow_urls: bool = False) -> Frames:
    """At most ``wanted`` frames of a path, bytes, file object, folder, array ``[frames, H, W, 3]``, list of images, or
    a pair of one of the latter two and its frames per second. Raises InputError naming the source."""
    source = resolve(source, allow_urls)
    if isinstance(source, MediaSource):
        if source.is_folder:
            return _from_folder(source, wanted, fps)
        head = _peek(source)
        if head[:3] == b"GIF" or head[8:12] == b"WEBP" or head[:8] == b"\x89PNG\r\n\x1a\n":
            return _from_animation(source, wanted)
        return _from_file(source, wanted)
    if isinstance(source, Mapping) and "frames" in source:
        source, fps = source["frames"], source.get("fps", fps)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], int | float):
        source, fps = source
    return _from_images(source, wanted, fps)


def _peek(source: MediaSource) -> bytes:
    with source.open() as file:
        return file.read(16)


def _check(total: int, width: int, height: int, name: str) -> None:
    if total < 1:
        raise InputError(f"{name}: holds no frames")
    if total > MAX_FRAMES:
        raise InputError(f"{name}: holds {total} frames, more than the limit of {MAX_FRAMES}; cut it")
    if width < 1 or height < 1 or width * height > MAX_FRAME_PIXELS:
        raise InputError(f"{name}: frames of {width} x {height} pixels; at most {MAX_FRAME_PIXELS} pixels are read")


def _rate(fps: float | None, name: str) -> float:
    if fps is None:
        return DEFAULT_FPS
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise InputError(f"{name}: {fps!r} frames per second; must be a number above 0")
    return float(fps)


def _from_folder(source: MediaSource, wanted: int, fps: float | None) -> Frames:
    assert source.path is not None
    try:
        paths = [path for path in source.path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise InputError(f"{source}: cannot be listed: {error.strerror or error}") from None
    if not paths:
        raise InputError(f"{source}: the folder holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    paths.sort(key=_natural)
    _check(len(paths), 1, 1, str(source))
    return _at_rate(paths, len(paths), wanted, _rate(fps, str(source)), str(source))


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Order in which frame 10 follows frame 9."""
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in re.split(r"(\d+)", path.name)]


def _from_images(images: Any, wanted: int, fps: float | None) -> Frames:
    name = f"video of {type(images).__name__}"
    if isinstance(images, np.ndarray):
        name = f"video array of shape {list(images.shape)}"
        if images.ndim != 4:
            raise InputError(f"{name}: expected [frames, height, width, 3]")
    elif not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InputError(f"{name}: give a path, an array [frames, height, width, 3], or a list of images")
    _check(len(images), 1, 1, name)
    return _at_rate(images, len(images), wanted, _rate(fps, name), name)


def _at_rate(images: Any, total: int, wanted: int, rate: float, name: str) -> Frames:
    indices = sample_indices(total, wanted)
    return Frames([images[i] for i in indices], [i / rate for i in indices], total / rate, name)


def _from_animation(source: MediaSource, wanted: int) -> Frames:
    """Frames of an animated image at the times that their durations give."""
    from PIL import Image

    with source.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=ANIMATED)
            total = getattr(image, "n_frames", 1)
            _check(total, image.width, image.height, str(source))
            taken, times, now = [], [], 0.0
            indices = set(sample_indices(total, wanted))
            for index in range(total):
                image.seek(index)
                if index in indices:
                    taken.append(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
                    times.append(now)
                now += image.info.get("duration", 1000 / DEFAULT_FPS) / 1000
            return Frames(taken, times, now, str(source))
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"{source}: the animation is damaged or truncated: {reason}") from None


def _from_file(source: MediaSource, wanted: int) -> Frames:
    try:
        import av  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError(f"{source}: reading video files needs PyAV: pip install av (animated GIF "
                         "and WebP, and folders of frames, are read without it)") from None
    try:
        return _decode(av, source, wanted)
    except InputError:
        raise
    except Exception as error:
        # FFmpeg reports damage and unknown formats in many ways
        reason = " ".join(str(error).split("'<")[0].split())[:120] or type(error).__name__
        raise InputError(f"{source}: is not a video that can be read: {reason}") from None


def _open(av: Any, file: Any) -> Any:
    # playlists inside a file must not reach other files or the network
    return av.open(file, options={"protocol_whitelist": "pipe"}, metadata_errors="replace")


def _decode(av: Any, source: MediaSource, wanted: int) -> Frames:
    with source.open() as file, _open(av, file) as container:
        if not container.streams.video:
            raise InputError(f"{source}: holds no video stream")
        stream = container.streams.video[0]
        total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        rate = float(stream.average_rate or DEFAULT_FPS)
        _check(total, stream.codec_context.width, stream.codec_context.height, str(source))
    indices = sample_indices(total, wanted)
    images, kept = [], []
    with source.open() as file, _open(av, file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        chosen = set(indices)
        for index, frame in enumerate(container.decode(stream)):
            if index in chosen:
                images.append(frame.to_ndarray(format="rgb24"))
                kept.append(index)
            if index >= indices[-1]:
                break
    if not images:
        raise InputError(f"{source}: no frame can be decoded")
    return Frames(images, [index / rate for index in kept], total / rate, str(source))
