"""The few committed media files in encodings that lose something, from the drawings and sounds of ``media``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soundfile
from media import chirp, picture, speech
from PIL import Image
from reference_data import DATA

OUT = DATA / "media"


def stereo(make: Callable[[int, int], np.ndarray], n: int, rate: int) -> np.ndarray:
    """Two channels ``[n, 2]``: the sound, and the same quieter and a little later."""
    sound = make(n, rate)
    return np.stack([sound, 0.6 * np.roll(sound, rate // 200)], -1)


def main() -> None:
    """Write them all."""
    OUT.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(150, 240, 40)).save(OUT / "turned.jpg", quality=80, exif=exif)
    Image.fromarray(picture(160, 120, 41)).save(OUT / "progressive.jpg", quality=70, progressive=True, subsampling=0)
    Image.frombytes("CMYK", (96, 72), picture(72, 96, 42, 4).tobytes()).save(OUT / "cmyk.jpg", quality=85)
    Image.fromarray(picture(100, 140, 43)[..., 0]).save(OUT / "grey.jpg", quality=75)
    Image.fromarray(picture(96, 128, 44, 4)).save(OUT / "alpha.webp", quality=60)
    soundfile.write(OUT / "stereo44k.wav", stereo(speech, 11025, 44100), 44100, "PCM_16")
    soundfile.write(OUT / "mono8k.wav", chirp(4000, 8000), 8000, "PCM_U8")
    soundfile.write(OUT / "float16k.wav", chirp(4000, 16000), 16000, "FLOAT")
    soundfile.write(OUT / "deep22k.flac", speech(6000, 22050), 22050, "PCM_24")
    soundfile.write(OUT / "stereo48k.ogg", stereo(speech, 36000, 48000), 48000)
    soundfile.write(OUT / "mono32k.mp3", speech(24000, 32000), 32000)
    for path in sorted(OUT.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
