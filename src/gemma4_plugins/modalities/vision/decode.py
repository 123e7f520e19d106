"""Reading an image into RGB rows, the way transformers 5.23.0 does (``image_utils.load_image`` and
``image_transforms.convert_to_rgb``).

An image that comes as a file is turned upright by its EXIF orientation and its alpha channel is dropped (a colour
that is declared transparent turns white); one that comes as a PIL object keeps its orientation and is laid over
white. Size and memory are checked before pixels are decoded, and only some rows at a time are turned and converted:
whole copies of a large image would take gigabytes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.processing.sources import MediaSource, resolve

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "QOI",
)
"""Formats that are opened. Left out are those whose readers run other programs (EPS) or read fonts and maps."""
MAX_PIXELS = 120_000_000
"""Largest image by default: 108 megapixels is the most that common cameras write."""
BYTES_PER_PIXEL = 8
"""Memory for reading one image, as bytes for each pixel of the limit: 960 MB by default."""
LEAST_BYTES = 64 << 20
PIXELS_VARIABLE = "GEMMA4_MAX_IMAGE_PIXELS"
ORIENTATION = 0x0112
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Bytes of a decoded pixel by mode; the others take four."""
_DECODER_BYTES = {"WEBP": 12, "AVIF": 7, "JPEG2000": 16, "QOI": 64}
"""Bytes that a decoder takes for a pixel besides. (QOI's is written in Python: here the limit is one of time.)"""
_opening = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """An image whose pixels are decoded when its rows are first asked for."""

    name: str
    """For messages."""
    width: int
    height: int
    nbytes: int
    """Memory that decoding takes."""
    rows: Callable[[int, int], PILImage]
    """Upright RGB rows from the first up to the second number."""


def max_pixels() -> int:
    """The pixel limit, ``GEMMA4_MAX_IMAGE_PIXELS`` where it is set."""
    text = os.environ.get(PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise InputError(f"{PIXELS_VARIABLE}={text[:40]}: must be a whole number of pixels from 1")
    return int(text)


def max_bytes() -> int:
    """The memory limit for reading one image, which goes with the pixel limit."""
    return max(BYTES_PER_PIXEL * max_pixels(), LEAST_BYTES)


def check_size(width: int, height: int, name: str) -> None:
    """Refuse an image without pixels, or with more than the limit."""
    if width < 1 or height < 1:
        raise InputError(f"{name}: the image is {width} x {height}, it has no pixels")
    if width * height > max_pixels():
        raise InputError(f"{name}: the image is {width} x {height} = {width * height} pixels, more than the limit of "
                         f"{max_pixels()}; shrink it, or set {PIXELS_VARIABLE}")


def check_memory(needed: int, width: int, height: int, name: str) -> None:
    """Refuse an image whose reading takes more than the limit's bytes."""
    limit = max_bytes()
    if needed > limit:
        raise InputError(f"{name}: the image is {width} x {height}; reading and scaling it takes {needed / 1e9:.2g} GB "
                         f"of memory, more than the limit of {limit / 1e9:.2g} GB; crop or shrink it, or set "
                         f"{PIXELS_VARIABLE} higher (a pixel of it allows {BYTES_PER_PIXEL} bytes)")


@contextmanager
def open_picture(source: Any, allow_urls: bool = False) -> Iterator[Picture]:
    """An image whose header was read and checked; its pixels are decoded inside the ``with`` block.

    Takes a path, bytes, file object, ``MediaSource``, PIL image, or an array: ``[H, W]``, ``[H, W, 1|3|4]`` or
    ``[1|3|4, H, W]``, uint8 or float in 0..1. Raises InputError naming the source, also for faults inside the block.
    """
    source = resolve(source, allow_urls)
    if isinstance(source, MediaSource):
        with source.open() as file, _reported(str(source), f"{source}: the image is damaged or truncated"):
            yield _from_file(file, str(source))
    elif hasattr(source, "getbands") and hasattr(source, "convert"):
        with _reported("PIL image", f"PIL image of mode {source.mode}: cannot be converted to RGB"):
            yield _from_pil(source)
    elif hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        yield _from_array(np.asarray(source))
    else:
        raise InputError(f"image {str(source)[:80]!r} is a {type(source).__name__}; give a path, bytes, a PIL image, "
                         "or an array [height, width, 3]")


@contextmanager
def _reported(name: str, fault: str) -> Iterator[None]:
    """Whatever a decoder raises, as InputError; what it warns of is not shown."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except InputError:
            raise
        except Image.UnidentifiedImageError:
            known = ", ".join(kind for kind in _formats() if kind not in ("DIB", "MPO"))
            raise InputError(f"{name}: is not an image that can be read; give one of {known}") from None
        except MemoryError:
            raise InputError(f"{name}: the image does not fit in memory; shrink it") from None
        except Exception as error:
            # image decoders raise anything from OSError to struct.error on damaged files
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"{fault}: {reason}") from None


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _from_file(file: BinaryIO, name: str) -> Picture:
    limit, size = max_bytes(), file.seek(0, os.SEEK_END)
    if size > limit:  # a decoder may read a whole chunk of a file at once, even before it knows the image's size
        raise InputError(f"{name}: the file has {size / 1e9:.2g} GB, more than the limit of {limit / 1e9:.2g} GB for "
                         f"an image; shrink it, or set {PIXELS_VARIABLE}")
    file.seek(0)
    if file.read(4) == b"\0\0\1\0":
        _check_icon(file, name)
    file.seek(0)
    image = _open(file, _formats())
    width, height = image.size
    check_size(width, height, name)
    _check_still(image, name)
    needed = size + _decoded_bytes(image, width, height)
    check_memory(needed, width, height, name)  # before its orientation is asked for: a PNG is decoded to find it
    # Pillow turns TIFF images itself
    turn = image.getexif().get(ORIENTATION, 1) if image.format != "TIFF" else 1
    turn = turn if turn in range(2, 9) else 1
    upright = (height, width) if turn >= 5 else (width, height)
    return Picture(name, *upright, needed,
                   lambda first, last: _over_white(_upright_rows(image, turn, first, last).convert("RGB")))


def _open(file: Any, formats: list[str]) -> PILImage:
    """``Image.open`` with our own pixel limit in place of Pillow's."""
    from PIL import Image

    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_icon(file: BinaryIO, name: str) -> None:
    """Refuse an icon that holds a large image: Pillow decodes one as it opens the file, and the file's own table of
    sizes may say less."""
    for entry in range(int.from_bytes(file.read(2), "little")):
        file.seek(6 + 16 * entry + 12)
        file.seek(int.from_bytes(file.read(4), "little"))
        head = file.read(24)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        else:  # a bitmap: colours and, below them, the mask
            size = 2 if head[:4] == b"\x0c\0\0\0" else 4
            width, height = (abs(int.from_bytes(head[at : at + size], "little", signed=True)) for at in (4, 4 + size))
        check_size(width or 1, height or 1, name)
        check_memory(16 * width * height, width, height, name)


def _decoded_bytes(image: Any, width: int, height: int) -> int:
    """Memory for the decoded pixels, Pillow's table of rows, and what the decoder takes besides."""
    pixels = width * height
    decoded = _BYTES.get(image.mode, 4) * pixels + 8 * height
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        sampling = [(layer[1], layer[2]) for layer in image.layer]  # 16-bit coefficients of every component are kept
        full = max(h for h, _ in sampling) * max(v for _, v in sampling)
        return decoded + 2 * pixels * sum(h * v for h, v in sampling) // full
    if image.format == "TIFF":
        tags = image.tag_v2
        tile = tags.get(322, 0) * tags.get(323, 0) or min(tags.get(278, height), height) * width
        turned = decoded if tags.get(ORIENTATION, 1) != 1 else 0
        return decoded + turned + int(tile) * max(sum(tags.get(258, (8,))), 8) // 8
    return decoded + _DECODER_BYTES.get(image.format, 0) * pixels


def _check_still(image: PILImage, name: str) -> None:
    """Refuse an animation or a file of several pages. (A camera's MPO holds one picture and its previews.)"""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        # their number is not said: some formats must be read to the end for it
        kind = "several pages" if image.format == "TIFF" else "an animation"
        raise InputError(f"{name}: holds {kind} where one still image is expected; extract a frame, or give it as a "
                         "video")


def _upright_rows(image: PILImage, turn: int, first: int, last: int) -> PILImage:
    """Rows of an image as its EXIF orientation ``turn`` (1 to 8) shows it."""
    from PIL.Image import Transpose

    side = image.width if turn >= 5 else image.height
    if turn in (3, 4, 7, 8):
        first, last = side - last, side - first
    rows = image.crop((first, 0, last, image.height) if turn >= 5 else (0, first, image.width, last))
    turns = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
             5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    return rows.transpose(turns[turn]) if turn in turns else rows


def _over_white(image: PILImage) -> PILImage:
    """An RGB image, transparency laid over white. (A colour that a palette or PNG chunk declares transparent outlives
    a conversion to RGB.)"""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _from_pil(image: PILImage) -> Picture:
    name = "PIL image"
    check_size(image.width, image.height, name)
    return Picture(name, image.width, image.height, _decoded_bytes(image, *image.size),
                   lambda first, last: _over_white(_upright_rows(image, 1, first, last)))


def _from_array(array: np.ndarray) -> Picture:
    from PIL import Image

    name = f"image array of shape {str(list(array.shape))[:80]}"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(f"{name}: expected [height, width, 3]")
    check_size(array.shape[1], array.shape[0], name)
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # NaN compares with nothing
            raise InputError(f"{name}: {array.dtype} values must lie in 0..1; use uint8 for 0..255")
    elif array.dtype != np.uint8:
        raise InputError(f"{name}: dtype {array.dtype} is not read; use uint8, or float in 0..1")
    return Picture(name, array.shape[1], array.shape[0], 0,
                   lambda first, last: Image.fromarray(_array_rows(array[first:last])))


def _array_rows(rows: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3]``, transparency laid over white."""
    if rows.dtype.kind == "f":
        rows = np.rint(rows * 255.0).astype(np.uint8)
    if rows.shape[2] == 4:
        alpha = rows[..., 3:] / 255
        rows = np.round(alpha * rows[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rows, (*rows.shape[:2], 3)))
