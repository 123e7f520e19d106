"""Reading an image into RGB bytes, the way transformers 5.23.0 does (``image_utils.load_image`` and
``image_transforms.convert_to_rgb``).

An image that comes as a file is turned upright by its EXIF orientation and its alpha channel is dropped (a colour
that is declared transparent turns white); one that comes as a PIL object keeps its orientation and is laid over
white. Sizes are checked before pixels are decoded.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.processing.sources import MediaSource, resolve

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "QOI",
)
"""Formats that are opened. Left out are those whose readers run other programs (EPS) or read fonts and maps."""
MAX_PIXELS = 178_956_970
"""Largest image by default, where Pillow itself refuses: about 13400 x 13400."""
PIXELS_VARIABLE = "GEMMA4_MAX_IMAGE_PIXELS"
_opening = threading.Lock()


def max_pixels() -> int:
    """The pixel limit, ``GEMMA4_MAX_IMAGE_PIXELS`` where it is set."""
    text = os.environ.get(PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{PIXELS_VARIABLE}={text[:40]}: must be a whole number of pixels from 1")
    return int(text)


def check_size(width: int, height: int, name: str) -> None:
    """Refuse an image without pixels, or with more than the limit."""
    if width < 1 or height < 1:
        raise InputError(f"{name}: the image is {width} x {height}, it has no pixels")
    if width * height > max_pixels():
        raise InputError(f"{name}: the image is {width} x {height} = {width * height} pixels, more than the limit of "
                         f"{max_pixels()}; shrink it, or set {PIXELS_VARIABLE}")


def read_image(source: Any, allow_urls: bool = False) -> tuple[np.ndarray, str]:
    """RGB bytes uint8 ``[height, width, 3]`` and a name for messages.

    Takes a path, bytes, file object, ``MediaSource``, PIL image, or an array: ``[H, W]``, ``[H, W, 1|3|4]`` or
    ``[1|3|4, H, W]``, uint8 or float in 0..1. Raises InputError naming the source.
    """
    source = resolve(source, allow_urls)
    if isinstance(source, MediaSource):
        return _read_file(source), str(source)
    if hasattr(source, "getbands") and hasattr(source, "convert"):
        return _from_pil(source), "PIL image"
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return _from_array(np.asarray(source)), f"array of shape {list(np.shape(source))}"
    raise InputError(f"image {str(source)[:80]!r} is a {type(source).__name__}; give a path, bytes, a PIL image, or an "
                     "array [height, width, 3]")


def _read_file(source: MediaSource) -> np.ndarray:
    from PIL import Image, ImageOps

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with source.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _open(file, formats)
            check_size(image.width, image.height, str(source))
            _check_still(image, str(source))
            with image:
                upright: PILImage = ImageOps.exif_transpose(image)
                # a colour that a palette or PNG chunk declares transparent outlives this conversion
                return _over_white(upright.convert("RGB"))
        except InputError:
            raise
        except Image.UnidentifiedImageError:
            raise InputError(f"{source}: is not an image that can be read; give one of "
                             f"{', '.join(name for name in formats if name not in ('DIB', 'MPO'))}") from None
        except MemoryError:
            raise InputError(f"{source}: the image does not fit in memory; shrink it") from None
        except Exception as error:
            # image decoders raise anything from OSError to struct.error on damaged files
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"{source}: the image is damaged or truncated: {reason}") from None


def _open(file: Any, formats: list[str]) -> PILImage:
    """``Image.open`` with our own pixel limit in place of Pillow's."""
    from PIL import Image

    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_still(image: PILImage, name: str) -> None:
    """Refuse an animation or a file of several pages. (A camera's MPO holds one picture and its previews.)"""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        kind = "several pages" if image.format == "TIFF" else "an animation"
        raise InputError(f"{name}: holds {kind} ({getattr(image, 'n_frames', 'many')} frames) where one still image is "
                         "expected; extract a frame, or give it as a video")


def _over_white(image: PILImage) -> np.ndarray:
    """RGB bytes, transparency laid over white."""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _from_pil(image: PILImage) -> np.ndarray:
    check_size(image.width, image.height, "PIL image")
    try:
        return _over_white(image)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"PIL image of mode {image.mode}: cannot be converted to RGB: {reason}") from None


def _from_array(array: np.ndarray) -> np.ndarray:
    name = f"image array of shape {list(array.shape)}"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(f"{name}: expected [height, width, 3]")
    check_size(array.shape[1], array.shape[0], name)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(f"{name}: {array.dtype} values must lie in 0..1; use uint8 for 0..255")
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{name}: dtype {array.dtype} is not read; use uint8, or float in 0..1")
    if array.shape[2] == 4:
        alpha = array[..., 3:] / 255
        array = np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
