"""Image preprocessing: pixels, positions and counts of the reference, and images that cannot be used."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import IMAGES, draw_image, picture, save_image
from PIL import Image, ImageOps
from reference_data import DATA, load_images, load_sizes, sample_indices

from gemma4_core import ConfigError, Context, InputError
from gemma4_core.config import parse_config
from gemma4_plugins.modalities.vision import preprocess
from gemma4_plugins.modalities.vision.preprocess import BUDGETS, Grid, ImageProcessor, soft_tokens, target_size

FACTS = {  # height, width, budget: resized height and width, soft tokens
    (224, 224, 280): (768, 768, 256),
    (512, 512, 280): (768, 768, 256),
    (480, 640, 280): (672, 912, 266),
    (1080, 1920, 280): (576, 1056, 264),
    (100, 2000, 280): (144, 3552, 222),
    (10, 3000, 280): (48, 13440, 280),
    (2000, 10, 280): (11328, 48, 236),
    (480, 640, 70): (336, 432, 63),
    (480, 640, 1120): (1344, 1824, 1064),
    (1080, 1920, 1120): (1200, 2112, 1100),
}


def processor(budget: int = 280, **options: Any) -> ImageProcessor:
    return ImageProcessor(Context(), {"image_tokens": budget, **options})


@pytest.mark.parametrize("size", FACTS)
def test_sizes_and_counts_of_the_facts(size: tuple[int, int, int]) -> None:
    height, width, budget = size
    grid = Grid(budget)
    found = target_size(height, width, grid)
    assert (*found, found[0] * found[1] // 48**2) == FACTS[size]


def test_500_random_sizes() -> None:
    sizes, budgets, targets = load_sizes()
    assert len(sizes) >= 500
    for (height, width), budget, target in zip(sizes.tolist(), budgets.tolist(), targets.tolist(), strict=True):
        assert list(target_size(height, width, Grid(budget))) == target, (height, width, budget)


REFERENCES = [key for key in load_images() if key.endswith(("/path", "/pil"))]


@pytest.mark.parametrize("key", REFERENCES)
def test_pixels_and_positions_equal_the_reference(key: str, tmp_path: Path) -> None:
    reference = load_images()[key]
    name, way = key.split("/")
    source = source_of(name.split("@")[0], way, tmp_path)
    ours = processor(reference.budget)
    item = ours.load(source)
    made = ours.prepare([item])
    pixels, positions = made.features["pixel_values"], made.features["image_position_ids"]
    rows, columns = reference.patches
    assert (item.rows, item.columns) == (rows, columns)
    assert list(made.soft_tokens) == [reference.tokens]
    assert pixels.shape == (1, 9 * reference.budget, 768) and pixels.dtype == np.float32
    valid = rows * columns
    flat = pixels[0, :valid].reshape(-1)
    assert np.array_equal(flat[sample_indices(flat.size)], reference.samples)
    if reference.sha256:
        assert hashlib.sha256(flat.tobytes()).hexdigest() == reference.sha256
    expected = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    assert np.array_equal(positions[0, :valid], expected)
    assert (positions[0, valid:] == -1).all() and not pixels[0, valid:].any()


def source_of(name: str, way: str, folder: Path) -> Any:
    path = save_image(name, folder) if name in IMAGES else DATA / "media" / name
    return str(path) if way == "path" else Image.open(path)


def test_many_ways_to_give_an_image(tmp_path: Path) -> None:
    path = save_image("photo", tmp_path)
    ours, rgb = processor(70), picture(480, 640, 9)
    expected = ours.load(path).pixels
    with path.open("rb") as file:
        for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, path.as_uri(), rgb,
                       draw_image("photo"), rgb / 255.0, rgb.transpose(2, 0, 1)):
            assert np.array_equal(ours.load(source).pixels, expected)


def test_arrays_of_other_depths() -> None:
    ours, grey = processor(70), picture(60, 80, 3, 1)
    rgb = ours.load(np.repeat(grey, 3, 2)).pixels
    assert np.array_equal(ours.load(grey).pixels, rgb)
    assert np.array_equal(ours.load(grey[..., 0]).pixels, rgb)
    clear = np.concatenate([np.repeat(grey, 3, 2), np.zeros_like(grey)], 2)
    assert (ours.load(clear).pixels == 255).all()


def test_images_of_different_sizes_are_padded_together() -> None:
    ours = processor(70)
    items = [ours.load(picture(30, 300)), ours.load(picture(64, 64))]
    made = ours.prepare(items)
    counts = [soft_tokens(item, ours.grid) for item in items]
    assert list(made.soft_tokens) == counts and counts[0] != counts[1]
    real = (made.features["image_position_ids"] >= 0).all(-1).sum(1)
    assert real.tolist() == [9 * count for count in counts]
    assert made.expansions[0] == "<|image>" + "<|image|>" * counts[0] + "<image|>"


def context(tmp_path: Path, vision: dict[str, Any], **files: str) -> Context:
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    raw = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"}, "vision_config": vision}
    return Context(tmp_path, parse_config(raw), raw)


def test_settings_come_from_the_folder(tmp_path: Path) -> None:
    old = context(tmp_path, {}, preprocessor_config='{"max_soft_tokens": 560, "patch_size": 16}')
    assert ImageProcessor(old, {}).grid.budget == 560
    new = context(tmp_path, {}, processor_config='{"image_processor": {"max_soft_tokens": 140, "resample": 3}}')
    assert ImageProcessor(new, {}).grid.budget == 140
    assert ImageProcessor(new, {"image_tokens": 70}).grid.budget == 70
    odd = ImageProcessor(context(tmp_path / "..", {"patch_size": 7, "pooling_kernel_size": 2}), {}).grid
    assert (odd.patch_size, odd.pooling_kernel_size, odd.max_patches) == (7, 2, 280 * 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"image_processor": {"max_soft_tokens": 100}}', "max_soft_tokens 100"),
        ('{"image_processor": {"patch_size": 14}}', "patch_size is 14"),
        ('{"image_processor": {"resample": 2}}', "resample 2"),
        ('{"image_processor": {"do_normalize": true, "image_mean": [0.5, 0.5, 0.5]}}', "image_mean [0.5, 0.5, 0.5]"),
        ('{"image_processor": 3}', "image_processor must be an object"),
        ("[1]", "must hold a JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_settings_that_are_not_supported(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")) as error:
        ImageProcessor(context(tmp_path, {}, processor_config=text), {})
    assert str(tmp_path) in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("budget", [0, 100, 281, -70, True])
def test_other_budgets_are_refused(budget: int) -> None:
    with pytest.raises(InputError, match=f"--image-tokens {str(budget).lower()}: must be one of {BUDGETS[0]}"):
        processor(budget)


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises this size, with a little data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(bytes(999)), b"IEND": b""}
    return chunks(parts)


def chunks(parts: dict[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items())


def animation(folder: Path, suffix: str) -> Path:
    frames = [Image.fromarray(picture(20, 30, seed)) for seed in range(3)]
    frames[0].save(folder / f"moving{suffix}", save_all=True, append_images=frames[1:], duration=100)
    return folder / f"moving{suffix}"


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "absent.png": (None, "no such file"),
    "empty.png": (b"", r"empty \(0 bytes\)"),
    "text.png": (b"not an image at all", "is not an image that can be read"),
    "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image that can be read"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
    "bomb.png": (png(50_000, 50_000), "50000 x 50000 = 2500000000 pixels, more than the limit of 120000000"),
    "none.png": (png(0, 5), "image"),
    "short.png": (png(100, 100), "damaged or truncated"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_images(tmp_path: Path, name: str) -> None:
    content, said = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        processor().load(str(tmp_path / name))
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp", "photo.gif", "photo.bmp", "photo.tiff"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    whole, cut = tmp_path / name, tmp_path / f"cut_{name}"
    draw_image("photo").save(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"damaged or truncated|is not an image") as error:
        processor().load(cut)
    assert f"cut_{name}" in str(error.value)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_animations_are_refused_where_a_still_is_expected(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=r"holds (an animation|several pages) where one"):
        processor().load(animation(tmp_path, suffix))


def test_pixel_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image("photo", tmp_path)
    monkeypatch.setenv("GEMMA4_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(InputError, match="more than the limit of 1000"):
        processor().load(path)
    with pytest.raises(InputError, match="more than the limit of 1000"):
        processor().load(draw_image("photo"))
    monkeypatch.setenv("GEMMA4_MAX_IMAGE_PIXELS", "3e8")
    with pytest.raises(InputError, match="GEMMA4_MAX_IMAGE_PIXELS=3e8: must be a whole number"):
        processor().load(path)


def bilevel(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel; one row of data where the image would be large."""
    data = zlib.compress(bytes((width // 8 + 1) * height), 1) if width * height < 1e9 else b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return chunks({b"IHDR": header, b"IDAT": data, b"IEND": b""})


def icon(inner: bytes) -> bytes:
    """An icon whose table says 16 x 16, whatever the image inside it is."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


SCREEN = b"GIF89a" + struct.pack("<HHBBB", 65535, 2700, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
COSTLY: dict[str, Callable[[], bytes]] = {
    "column.png": lambda: png(1, 178_000_000),
    "thin.png": lambda: png(1, 119_000_000),
    "wide.png": lambda: bilevel(40_000_000, 1),
    "needle.png": lambda: bilevel(1, 5_000_000),
    "screen.gif": lambda: SCREEN,
    "square.png": lambda: bilevel(13370, 13370),
    "hidden.ico": lambda: icon(bilevel(13370, 13370)),
    "bitmap.ico": lambda: icon(struct.pack("<IiiHHI", 40, 60000, 60000, 1, 32, 0) + bytes(999)),
}
PEAK = """
import resource, sys
from gemma4_core import Context, InputError
from gemma4_plugins.modalities.vision.preprocess import ImageProcessor
ours = ImageProcessor(Context(), {})
ours.load(sys.argv[1])
for path in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said = str(ours.load(path).pixels.shape)
    except InputError as error:
        said = str(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, said)
"""
"""Prints by how many MiB each image made this process grow, and what became of it."""


def peaks(first: Path, *paths: Path) -> list[tuple[int, str]]:
    command = [sys.executable, "-c", PEAK, str(first), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [(int(number), said) for number, _, said in (line.partition(" ") for line in done.stdout.splitlines())]


def test_picture_memory_is_checked_before_decoding(tmp_path: Path) -> None:
    for name, make in COSTLY.items():
        (tmp_path / name).write_bytes(make())
    (tmp_path / "chunk.png").write_bytes(png(9, 9))
    with (tmp_path / "chunk.png").open("r+b") as file:
        file.truncate(3 << 30)  # sparse
    found = peaks(save_image("photo", tmp_path), *(tmp_path / name for name in (*COSTLY, "chunk.png")))
    for name, (grown, said) in zip((*COSTLY, "chunk.png"), found, strict=True):
        assert grown < 100 and f"{name}: the " in said and "GEMMA4_MAX_IMAGE_PIXELS" in said, (name, grown, said)
        assert len(said) < 500


def test_picture_memory_of_large_photos_stays_small(tmp_path: Path) -> None:
    """Whole copies of this image in RGB, turned and composed over white take 36 bytes per pixel."""
    image = Image.new("P", (9000, 4000), 3)
    image.putpalette(bytes(range(256)) * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "panorama.png", transparency=bytes(range(256)), exif=exif)
    image.convert("RGB").save(tmp_path / "photo.jpg", exif=exif)
    (few, said), (more, also) = peaks(save_image("photo", tmp_path), tmp_path / "panorama.png", tmp_path / "photo.jpg")
    assert said == also and said.startswith("(")
    assert few < 36 * 3 and more < 36 * 6


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["RGB", "P", "LA"])
def test_bands_equal_the_whole_image(orientation: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 7 * 90)
    image = Image.fromarray(picture(90, 130, 7)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif, **({"transparency": 4} if mode == "P" else {}))
    whole = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    if mode == "P":  # the transparent colour turns white
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole.convert("RGBA")).convert("RGB")
    expected = cut_whole(whole, processor(70).grid)
    assert np.array_equal(processor(70).load(file.getvalue()).pixels, expected)


def cut_whole(image: Image.Image, grid: Any) -> np.ndarray:
    height, width = target_size(image.height, image.width, grid)
    scaled = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = height // 16, width // 16
    return scaled.reshape(rows, 16, columns, 16, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_tiffs_of_all_modes_are_read(mode: str) -> None:
    image = Image.fromarray(picture(60, 80, 5)) if mode != "I;16" else Image.fromarray(np.full((60, 80), 99, np.uint16))
    file = io.BytesIO()
    image = image if image.mode == mode else image.convert(mode)
    image.save(file, "TIFF", compression="tiff_deflate")
    assert processor(70).load(file.getvalue()).rows > 0


def test_image_with_more_patches_than_positions(tmp_path: Path) -> None:
    ours = ImageProcessor(context(tmp_path, {"position_embedding_size": 100}), {})
    ours.load(picture(64, 64))
    with pytest.raises(InputError, match="840 x 3 patches, more than the 100 positions"):
        ours.load(picture(10, 3000))


@pytest.mark.parametrize(
    "value",
    [None, 7, object(), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.int64), np.zeros((2, 3, 4, 5)),
     np.full((5, 5, 3), 255.0), np.full((5, 5, 3), np.nan), np.zeros((5, 5, 2), np.uint8), Image.new("RGB", (5, 0)),
     io.StringIO("text")],
)
def test_values_that_are_no_images(value: Any) -> None:
    with pytest.raises(InputError) as error:
        processor().load(value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
