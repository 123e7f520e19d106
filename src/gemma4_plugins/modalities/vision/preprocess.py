"""From RGB bytes to patches, position ids and soft-token counts.

Rules follow transformers 5.23.0, ``models/gemma4/image_processing_pil_gemma4.py``: the image is scaled up or down to
fill the soft-token budget, sides are multiples of the pooled patch, bicubic with antialias on uint8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_core.contracts import Context, PreparedMedia
from gemma4_core.errors import ConfigError, InputError
from gemma4_core.formatting import shown
from gemma4_core.processing.settings import processor_values
from gemma4_plugins.modalities.vision.config import vision_config
from gemma4_plugins.modalities.vision.decode import Picture, check_memory, open_picture

BUDGETS = (70, 140, 280, 560, 1120)
"""Soft tokens that an image may take at most."""
DEFAULT_BUDGET = 280
PLACEHOLDER = "<|image|>"
BEGIN, END = "<|image>", "<image|>"
LEVELS = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
"""A byte as a number in 0..1, rounded as the reference rounds it."""
BAND_PIXELS = 1 << 20
"""Pixels that are turned, converted and scaled along rows at once."""
BAND_BYTES, FILTER_BYTES = 32, 40
"""Memory that this takes per pixel (copies in RGBA and RGB), and filters per pixel of a side."""
FLAT_FILES = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
"""Files of settings that older folders have in place of a section of processor_config.json."""
FIXED: Mapping[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_convert_rgb": (True, None),
    "resample": (3,),
    "rescale_factor": (1 / 255, 0.00392156862745098),
}
"""Processor settings that have one supported value."""


@dataclass(frozen=True)
class Grid:
    """How images are cut: the budget in soft tokens, pixels per patch side, patches per side of a soft token."""

    budget: int = DEFAULT_BUDGET
    patch_size: int = 16
    pooling_kernel_size: int = 3
    position_embedding_size: int = 10240
    """Patch columns and rows must stay below it."""

    @property
    def max_patches(self) -> int:
        return self.budget * self.pooling_kernel_size**2


def target_size(height: int, width: int, grid: Grid) -> tuple[int, int]:
    """Height and width in pixels to which an image is scaled: the largest that keep its aspect within the budget and
    are multiples of patch_size * pooling_kernel_size. A side that would vanish becomes one such multiple."""
    side = grid.patch_size * grid.pooling_kernel_size
    factor = math.sqrt(grid.max_patches * grid.patch_size**2 / (height * width))
    rows = math.floor(factor * height / side)
    columns = math.floor(factor * width / side)
    if rows == 0:
        rows, columns = 1, min(width // height, grid.budget)
    elif columns == 0:
        rows, columns = min(height // width, grid.budget), 1
    return rows * side, columns * side


@dataclass(frozen=True)
class Patches:
    """One image cut into patches, row by row."""

    pixels: np.ndarray
    """uint8 ``[rows * columns, patch_size * patch_size * 3]``; inside a patch row, column, channel."""
    rows: int
    columns: int

    def positions(self) -> np.ndarray:
        """int64 ``[rows * columns, 2]``: column and row of each patch."""
        columns, rows = np.arange(self.columns), np.arange(self.rows)
        return np.stack([np.tile(columns, self.rows), np.repeat(rows, self.columns)], -1)


def cut(picture: Picture, grid: Grid) -> Patches:
    """Scale an image to the budget and cut it. Raises InputError where it has too many columns or rows, or takes too
    much memory."""
    height, width = target_size(picture.height, picture.width, grid)
    rows, columns = height // grid.patch_size, width // grid.patch_size
    if max(rows, columns) > grid.position_embedding_size:
        raise InputError(f"{picture.name}: {picture.width} x {picture.height} becomes {columns} x {rows} patches, more "
                         f"than the {grid.position_embedding_size} positions of this model; crop it or lower "
                         "--image-tokens")
    rgb = scaled(picture, height, width)
    size = grid.patch_size
    # [rows * p, columns * p, 3] -> [rows, columns, p, p, 3] -> [rows * columns, p * p * 3]
    split = rgb.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)
    return Patches(np.ascontiguousarray(split).reshape(rows * columns, -1), rows, columns)


def scaled(picture: Picture, height: int, width: int) -> np.ndarray:
    """An image as uint8 ``[height, width, 3]``. Raises InputError where that takes too much memory.

    Pillow scales along rows first and rounds to bytes before it scales along columns, so that rows can be scaled in
    bands as they are decoded, with the same bytes as ``resize`` of the whole image.
    """
    from PIL import Image

    band = min(picture.height, max(1, BAND_PIXELS // picture.width))
    filters = FILTER_BYTES * (max(picture.width, width) + max(picture.height, height))
    needed = picture.nbytes + BAND_BYTES * band * picture.width + 4 * width * (picture.height + height) + filters
    check_memory(needed, picture.width, picture.height, picture.name)
    narrow = Image.new("RGB", (width, picture.height))
    for first in range(0, picture.height, band):
        rows = picture.rows(first, min(first + band, picture.height))
        narrow.paste(rows.resize((width, rows.height), Image.Resampling.BICUBIC), (0, first))
    return np.array(narrow.resize((width, height), Image.Resampling.BICUBIC))


def stack(items: Sequence[Patches], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Patches fp32 ``[images, max_patches, p * p * 3]`` in 0..1 and positions int64 ``[images, max_patches, 2]``,
    padded with 0 and -1."""
    pixels = np.zeros((len(items), grid.max_patches, grid.patch_size**2 * 3), np.float32)
    positions = np.full((len(items), grid.max_patches, 2), -1, np.int64)
    for index, item in enumerate(items):
        pixels[index, : len(item.pixels)] = LEVELS[item.pixels]
        positions[index, : len(item.pixels)] = item.positions()
    return pixels, positions


def soft_tokens(item: Patches, grid: Grid) -> int:
    """Soft tokens that an image takes."""
    return item.rows * item.columns // grid.pooling_kernel_size**2


def read_grid(
    context: Context, budget: int | None = None, section: str = "image_processor", default_budget: int | None = None
) -> Grid:
    """The grid of a folder: its processor settings, checked against its vision config.

    Raises ConfigError for settings that are not supported, InputError for another ``budget``.
    """
    values = processor_values(context, section, flat=FLAT_FILES.get(section))
    where = context.path or "processor settings"
    for key, allowed in FIXED.items():
        if key in values and values[key] not in allowed:
            found = shown(values[key])
            raise ConfigError(f"{where}: {section}.{key} {found} is not supported; expected {allowed[0]!r}")
    if values.get("do_normalize"):
        for key, neutral in (("image_mean", [0, 0, 0]), ("image_std", [1, 1, 1])):
            if values.get(key) not in (None, neutral):
                raise ConfigError(f"{where}: {section}.{key} {shown(values[key])} is not supported; expected {neutral}")
    vision = vision_config(context.config) if context.config is not None else None
    sizes = {}
    for key, default in (("patch_size", 16), ("pooling_kernel_size", 3)):
        ours = getattr(vision, key) if vision is not None else default
        sizes[key], given_size = ours, values.get(key)
        if given_size and (isinstance(given_size, bool) or given_size != ours):
            raise ConfigError(f"{where}: {section}.{key} is {shown(given_size)} but vision_config.{key} is {ours}")
    if default_budget is None:
        declared = vision.default_output_length if vision is not None else DEFAULT_BUDGET
        default_budget = declared if declared in BUDGETS else DEFAULT_BUDGET
    given = budget if budget is not None else values.get("max_soft_tokens") or default_budget
    if given not in BUDGETS or isinstance(given, bool):
        known = ", ".join(map(str, BUDGETS))
        if budget is None:
            raise ConfigError(f"{where}: {section}.max_soft_tokens {shown(given)} must be one of {known}")
        raise InputError(f"--image-tokens {shown(given)}: must be one of {known}")
    positions = vision.position_embedding_size if vision is not None else 10240
    return Grid(int(given), sizes["patch_size"], sizes["pooling_kernel_size"], positions)


class ImageProcessor:
    """``MediaProcessor`` of still images."""

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        self.grid = read_grid(context, options.get("image_tokens"))
        self.allow_urls = bool(options.get("allow_urls", False))

    def load(self, source: Any) -> Patches:
        """Read, scale and cut one image. Raises InputError naming it."""
        with open_picture(source, self.allow_urls) as picture:
            return cut(picture, self.grid)

    def prepare(self, items: Sequence[Patches]) -> PreparedMedia:
        """``pixel_values`` and ``image_position_ids`` of loaded images."""
        pixels, positions = stack(items, self.grid)
        counts = [soft_tokens(item, self.grid) for item in items]
        texts = [BEGIN + PLACEHOLDER * count + END for count in counts]
        return PreparedMedia({"pixel_values": pixels, "image_position_ids": positions}, texts, counts)
