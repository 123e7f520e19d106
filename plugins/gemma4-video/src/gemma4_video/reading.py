"""Sampling frames of a video: files through PyAV, animated images through Pillow, folders of frames, arrays.

The cost of decoding is checked before it begins. Long files are decoded near the frames that are needed, and each
frame is preprocessed before the next is decoded.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_core import InputError
from gemma4_core.processing import MediaSource, resolve
from gemma4_video.sampling import DEFAULT_FPS, sample_indices

MAX_FRAMES = 250_000
"""Longest video in frames: more than two hours at 30 frames per second."""
MAX_FRAME_PIXELS = 8192 * 4320
MAX_ANIMATED_PIXELS = 4096 * 2304
"""Pixels per frame of an animated image: Pillow keeps a dozen copies of it in full colour."""
MAX_ANIMATION_PIXELS, MAX_VIDEO_PIXELS = 4_000_000_000, 100_000_000_000
"""Pixels of all frames that must be decoded: half a minute to a few minutes of work."""
ANIMATED = ("GIF", "WEBP", "PNG")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


@dataclass(frozen=True)
class Frames:
    """Frames sampled from a video."""

    images: list[Any]
    """Each frame, preprocessed."""
    times: list[float]
    """Time of each frame in seconds."""
    seconds: float
    """Duration of the whole video in seconds."""
    name: str


Take = Callable[[Any], Any]
"""Preprocesses a frame: a Pillow image, an array ``[H, W, 3]``, or a path."""


def read_frames(source: Any, wanted: int, fps: float | None, take: Take, allow_urls: bool = False) -> Frames:
    """At most ``wanted`` frames, through ``take``, of a path, bytes, file object, folder, array ``[frames, H, W, 3]``,
    list of images, or a pair of one of the latter two and its frames per second. Raises InputError naming the source.
    """
    source = resolve(source, allow_urls)
    if isinstance(source, MediaSource):
        if source.is_folder:
            return _from_folder(source, wanted, fps, take)
        head = _peek(source)
        if head[:3] == b"GIF" or head[8:12] == b"WEBP" or head[:8] == b"\x89PNG\r\n\x1a\n":
            return _from_animation(source, wanted, take)
        return _from_file(source, wanted, take)
    if isinstance(source, Mapping) and "frames" in source:
        source, fps = source["frames"], source.get("fps", fps)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], int | float):
        source, fps = source
    return _from_images(source, wanted, fps, take)


def _peek(source: MediaSource) -> bytes:
    with source.open() as file:
        return file.read(16)


def _check(total: int, width: int, height: int, name: str, most: int = MAX_FRAME_PIXELS) -> None:
    if total < 1:
        raise InputError(f"{name}: holds no frames")
    if total > MAX_FRAMES:
        raise InputError(f"{name}: holds {total} frames, more than the limit of {MAX_FRAMES}; cut it")
    if width < 1 or height < 1 or width * height > most:
        raise InputError(f"{name}: frames of {width} x {height} pixels; at most {most} pixels are read")


def _rate(fps: float | None, name: str) -> float:
    if fps is None:
        return DEFAULT_FPS
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise InputError(f"{name}: {fps!r} frames per second; must be a number above 0")
    return float(fps)


def _from_folder(source: MediaSource, wanted: int, fps: float | None, take: Take) -> Frames:
    assert source.path is not None
    try:
        paths = [path for path in source.path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise InputError(f"{source}: cannot be listed: {error.strerror or error}") from None
    if not paths:
        raise InputError(f"{source}: the folder holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    paths.sort(key=_natural)
    _check(len(paths), 1, 1, str(source))
    return _at_rate(paths, len(paths), wanted, _rate(fps, str(source)), str(source), take)


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Order in which frame 10 follows frame 9."""
    pieces = re.split(r"(\d+)", path.name)
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]


def _from_images(images: Any, wanted: int, fps: float | None, take: Take) -> Frames:
    name = f"video of {type(images).__name__}"
    if isinstance(images, np.ndarray):
        name = f"video array of shape {str(list(images.shape))[:80]}"
        if images.ndim != 4:
            raise InputError(f"{name}: expected [frames, height, width, 3]")
    elif not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InputError(f"{name}: give a path, an array [frames, height, width, 3], or a list of images")
    _check(len(images), 1, 1, name)
    return _at_rate(images, len(images), wanted, _rate(fps, name), name, take)


def _at_rate(images: Any, total: int, wanted: int, rate: float, name: str, take: Take) -> Frames:
    indices = sample_indices(total, wanted)
    made = [_made(take, images[index], number, name) for number, index in enumerate(indices)]
    return Frames(made, [i / rate for i in indices], total / rate, name)


def _made(take: Take, image: Any, number: int, name: str) -> Any:
    try:
        return take(image)
    except InputError as error:
        raise InputError(f"{name}: frame {number}: {error}"[:490]) from None


def _check_work(frames: int, width: int, height: int, limit: int, name: str) -> None:
    if frames * width * height > limit:
        raise InputError(f"{name}: {frames} frames of {width} x {height} would have to be decoded, "
                         f"{frames * width * height:.2g} pixels, more than the limit of {limit:.2g}; cut or shrink it")


def _from_animation(source: MediaSource, wanted: int, take: Take) -> Frames:
    """Frames of an animated image at the times that their durations give. Each is drawn over the one before."""
    from PIL import Image

    with source.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=ANIMATED)
            _check(1, image.width, image.height, str(source), MAX_ANIMATED_PIXELS)
            total = getattr(image, "n_frames", 1)
            # a frame that extends beyond the picture makes it larger
            _check(total, image.width, image.height, str(source), MAX_ANIMATED_PIXELS)
            _check_work(total, image.width, image.height, MAX_ANIMATION_PIXELS, str(source))
            taken, times, now = [], [], 0.0
            indices = set(sample_indices(total, wanted))
            for index in range(total):
                image.seek(index)
                if image.format == "WEBP":
                    image.load()  # only then does it know the frame's duration
                if index in indices:
                    frame = image.convert("RGBA" if "A" in image.getbands() else "RGB")
                    taken.append(_made(take, frame, len(taken), str(source)))
                    times.append(now)
                now += image.info.get("duration", 1000 / DEFAULT_FPS) / 1000
            return Frames(taken, times, now, str(source))
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"{source}: the animation is damaged or truncated: {reason}") from None


def _from_file(source: MediaSource, wanted: int, take: Take) -> Frames:
    try:
        import av  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError(f"{source}: reading video files needs PyAV: pip install av (animated GIF "
                         "and WebP, and folders of frames, are read without it)") from None
    try:
        return _decode(av, source, wanted, take)
    except InputError:
        raise
    except Exception as error:
        # FFmpeg reports damage and unknown formats in many ways
        reason = " ".join(str(error).split("'<")[0].split())[:120] or type(error).__name__
        raise InputError(f"{source}: is not a video that can be read: {reason}") from None


def _open(av: Any, file: Any) -> Any:
    # playlists inside a file must not reach other files or the network
    container = av.open(file, options={"protocol_whitelist": "pipe"}, metadata_errors="replace")
    for stream in container.streams.video[:1]:
        stream.thread_type = "AUTO"
        # frames may be larger than the header says
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return container


def _decode(av: Any, source: MediaSource, wanted: int, take: Take) -> Frames:
    with source.open() as file, _open(av, file) as container:
        if not container.streams.video:
            raise InputError(f"{source}: holds no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        _check(1, width, height, str(source))
        rate = float(stream.average_rate or DEFAULT_FPS)
        shown, keys = _index(container, stream)
        _check(len(shown), width, height, str(source))
    indices = sample_indices(len(shown), wanted)
    starts = _starts(indices, shown, keys)
    near = sum(index + 1 - start for index, start in zip(indices, _fresh(indices, starts), strict=True))
    seeking = near < indices[-1] + 1
    _check_work(near if seeking else indices[-1] + 1, width, height, MAX_VIDEO_PIXELS, str(source))
    images: dict[int, Any] = {}
    if seeking:
        with source.open() as file, _open(av, file) as container:
            images = _decode_near(container, indices, starts, shown, take, str(source))
    if len(images) < len(indices):
        _check_work(indices[-1] + 1, width, height, MAX_VIDEO_PIXELS, str(source))
        with source.open() as file, _open(av, file) as container:
            images = _decode_all(container, indices, take, str(source))
    if not images:
        raise InputError(f"{source}: no frame can be decoded")
    return Frames(list(images.values()), [index / rate for index in images], len(shown) / rate, str(source))


def _index(container: Any, stream: Any) -> tuple[list[Any], list[Any]]:
    """The times of all frames in the order in which they are shown, and of the key frames; without decoding. A time
    that the file does not contain is None, and then none of them can be used."""
    shown, keys = [], []
    for packet in container.demux(stream):
        if packet.size:
            shown.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if len(shown) > MAX_FRAMES:
            break
    if None in shown or len(set(shown)) < len(shown):
        return [None] * len(shown), []
    return sorted(shown), sorted(keys)


def _starts(indices: list[int], shown: list[Any], keys: list[Any]) -> list[int]:
    """For each sampled frame, the one from which decoding must begin."""
    places = {time: place for place, time in enumerate(shown)} if keys else {}
    return [places[keys[max(0, bisect_right(keys, shown[index]) - 1)]] if keys else 0 for index in indices]


def _fresh(indices: list[int], starts: list[int]) -> list[int]:
    """The same, but frames that were decoded for the one before are not decoded again."""
    return [max(start, before + 1) for start, before in zip(starts, [-1, *indices], strict=False)]


def _decode_near(
    container: Any, indices: list[int], starts: list[int], shown: list[Any], take: Take, name: str
) -> dict[int, Any]:
    """Frames by number, decoded from the nearest key frame before them; fewer if the file's times are wrong."""
    stream = container.streams.video[0]
    images: dict[int, Any] = {}
    frames, reached = iter(()), -1
    for index, start in zip(indices, starts, strict=True):
        if start > reached:
            container.seek(shown[start], stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            if frame.pts is None or frame.pts > shown[index]:
                return images
            if frame.pts == shown[index]:
                images[index] = _made(take, frame.to_ndarray(format="rgb24"), len(images), name)
                break
        reached = index
    return images


def _decode_all(container: Any, indices: list[int], take: Take, name: str) -> dict[int, Any]:
    """Frames by number, decoded from the first."""
    chosen, images = set(indices), dict[int, Any]()
    for index, frame in enumerate(container.decode(container.streams.video[0])):
        if index in chosen:
            images[index] = _made(take, frame.to_ndarray(format="rgb24"), len(images), name)
        if index >= indices[-1]:
            break
    return images
