"""Images and sounds drawn by arithmetic, the same on every machine (numpy and Pillow only).

The reference scripts and the tests use the same ones, so that almost no media file needs to be committed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
SAMPLING_RATE = 16000


def random_bytes(seed: int, n: int) -> U8:
    """``n`` stable bytes: a bit generator's raw stream never changes between numpy versions."""
    return np.random.PCG64(seed).random_raw(-(-n // 8)).astype("<u8").view(np.uint8)[:n]


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> U8:
    """A drawing ``[height, width, channels]`` with gradients, stripes of every width, hard edges and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    noise = random_bytes(seed + 1, height * width * channels).reshape(height, width, channels).astype(np.int64)
    layers = []
    for c in range(channels):
        ramp = (x * (3 + c) + y * (5 - c) + seed * 17) % 256
        stripes = ((x * x // (17 + 4 * c) + y * (c + 1)) % 64 < 32) * 90
        disc = ((x - width * (c + 1) // 4) ** 2 + (y - height // 2) ** 2 < (min(height, width) // 3) ** 2) * 120
        layers.append(ramp // 2 + stripes + disc)
    image = np.stack(layers, -1) + noise // 8 - 16
    return np.clip(image, 0, 255).astype(np.uint8)


def _rgb(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(picture(height, width, seed))


def _rgba(height: int, width: int, seed: int) -> Image.Image:
    image = picture(height, width, seed, 4)
    image[..., 3] = np.linspace(0, 255, width).astype(np.uint8)  # from clear to opaque, left to right
    return Image.fromarray(image)


def _la(height: int, width: int, seed: int) -> Image.Image:
    image = picture(height, width, seed, 2)
    image[..., 1] = np.linspace(255, 0, height).astype(np.uint8)[:, None]
    return Image.fromarray(image)


def _palette(height: int, width: int, seed: int, transparency: int | bytes | None = None) -> Image.Image:
    image = Image.fromarray(picture(height, width, seed, 1)[..., 0] // 16)
    image.putpalette(bytes(random_bytes(seed + 99, 16 * 3)))
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def _grey(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(picture(height, width, seed, 1)[..., 0])


def _grey16(height: int, width: int, seed: int) -> Image.Image:
    fine = picture(height, width, seed, 1)[..., 0].astype(np.uint16) * 257
    fine[: height // 3] //= 300  # a part of it stays below 256, where clipping and scaling differ most
    return Image.fromarray(fine)


def _bits(height: int, width: int, seed: int) -> Image.Image:
    return _grey(height, width, seed).point(lambda v: 255 * (v > 110)).convert("1", dither=Image.Dither.NONE)


def _cmyk(height: int, width: int, seed: int) -> Image.Image:
    image = picture(height, width, seed, 4)
    image[..., 3] //= 3
    return Image.frombytes("CMYK", (width, height), image.tobytes())


def _turned(height: int, width: int, seed: int, orientation: int) -> Image.Image:
    image = _rgb(height, width, seed)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return image


def _colour_key(height: int, width: int, seed: int) -> Image.Image:
    image = picture(height, width, seed)
    image[height // 4 : height // 2] = (12, 200, 40)
    keyed = Image.fromarray(image)
    keyed.info["transparency"] = (12, 200, 40)
    return keyed


def _grey_key(height: int, width: int, seed: int) -> Image.Image:
    image = picture(height, width, seed, 1)[..., 0]
    image[: height // 3] = 77
    keyed = Image.fromarray(image)
    keyed.info["transparency"] = 77
    return keyed


IMAGES: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    # name: file suffix, drawing
    "tall": (".png", lambda: _rgb(900, 40, 1)),
    "wide": (".png", lambda: _rgb(60, 1200, 2)),
    "thin": (".png", lambda: _rgb(1, 700, 3)),
    "needle": (".png", lambda: _rgb(2000, 10, 4)),
    "tiny": (".png", lambda: _rgb(5, 7, 5)),
    "dot": (".png", lambda: _rgb(1, 1, 6)),
    "huge": (".bmp", lambda: _rgb(1900, 2600, 7)),
    "exact": (".png", lambda: _rgb(768, 768, 8)),
    "photo": (".png", lambda: _rgb(480, 640, 9)),
    "rgba": (".png", lambda: _rgba(200, 310, 10)),
    "la": (".png", lambda: _la(150, 90, 11)),
    "palette": (".png", lambda: _palette(130, 170, 12)),
    "palette_clear": (".png", lambda: _palette(130, 170, 13, 3)),
    "palette_alpha": (".png", lambda: _palette(120, 110, 14, bytes(range(0, 256, 16)))),
    "gif": (".gif", lambda: _palette(96, 144, 15, 5)),
    "grey": (".png", lambda: _grey(333, 222, 16)),
    "grey16": (".png", lambda: _grey16(240, 320, 17)),
    "bits": (".png", lambda: _bits(200, 200, 18)),
    "cmyk": (".tiff", lambda: _cmyk(180, 240, 19)),
    "turned3": (".png", lambda: _turned(100, 260, 20, 3)),
    "turned5": (".png", lambda: _turned(100, 260, 21, 5)),
    "turned6": (".png", lambda: _turned(100, 260, 22, 6)),
    "colour_key": (".png", lambda: _colour_key(160, 120, 23)),
    "grey_key": (".png", lambda: _grey_key(90, 120, 24)),
}


def draw_image(name: str) -> Image.Image:
    """The image ``name`` of ``IMAGES``, in its own mode."""
    return IMAGES[name][1]()


def save_image(name: str, folder: Path) -> Path:
    """Write ``name`` losslessly in its file format, with its transparency and EXIF data."""
    suffix, draw = IMAGES[name]
    image, path = draw(), folder / (name + suffix)
    kept = {key: image.info[key] for key in ("transparency", "exif") if key in image.info}
    image.save(path, **kept)
    return path


def _time(n: int, rate: int) -> NDArray[np.float64]:
    return np.arange(n, dtype=np.float64) / rate


def silence(n: int, rate: int = SAMPLING_RATE) -> F32:
    """``n`` zeros."""
    return np.zeros(n, np.float32)


def tone(n: int, rate: int = SAMPLING_RATE) -> F32:
    """0.5 sin(2 pi 440 t)."""
    return (0.5 * np.sin(2 * np.pi * 440 * _time(n, rate))).astype(np.float32)


def loud(n: int, rate: int = SAMPLING_RATE) -> F32:
    """A full-scale square wave of 97 Hz: wide spectrum, no headroom."""
    return np.where(np.floor(2 * 97 * _time(n, rate)) % 2 == 0, 1.0, -1.0).astype(np.float32)


def noise(n: int, rate: int = SAMPLING_RATE) -> F32:
    """White noise of amplitude 0.3."""
    return ((random_bytes(7, 2 * n).view("<u2").astype(np.float64) / 32767.5 - 1) * 0.3).astype(np.float32)


def chirp(n: int, rate: int = SAMPLING_RATE) -> F32:
    """A sweep from 80 Hz upward by 2500 Hz per second, folding back at 7 kHz, amplitude swelling 3 times a second."""
    t = _time(n, rate)
    turn = np.mod(80 + 2500 * t, 2 * 6920)
    frequency = 80 + np.minimum(turn, 2 * 6920 - turn)
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return (0.6 * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)) * np.sin(phase)).astype(np.float32)


def speech(n: int, rate: int = SAMPLING_RATE) -> F32:
    """Speech-like: harmonics of a gliding pitch under two moving formants, in syllables with pauses."""
    t = _time(n, rate)
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.9 * t) + 15 * np.sin(2 * np.pi * 2.3 * t)) / rate
    first, second = 550 + 250 * np.sin(2 * np.pi * 1.7 * t), 1500 + 600 * np.sin(2 * np.pi * 1.1 * t + 1)
    sound = np.zeros(n)
    for h in range(1, 30):
        near = np.exp(-(((120 * h - first) / 180) ** 2)) + 0.6 * np.exp(-(((120 * h - second) / 250) ** 2)) + 0.02
        sound += near * np.sin(h * phase + h * h)
    syllables = np.clip(1.6 * np.sin(2 * np.pi * 2.0 * t) + 0.7, 0, 1)
    return (0.18 * syllables * sound).astype(np.float32)


SOUNDS: dict[str, Callable[..., F32]] = {
    "silence": silence, "tone": tone, "loud": loud, "noise": noise, "chirp": chirp, "speech": speech,
}
