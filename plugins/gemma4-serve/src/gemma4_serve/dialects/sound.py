"""A recording cut into pieces that the model can hear: at most so many seconds each, cut where it is quiet."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from gemma4_serve.errors import wrong

LONGEST_PIECE = 28.0
EARLIEST_CUT = 18.0
"""Seconds of a piece at least, where more follow."""
QUIET = 0.05
"""Seconds over which loudness is measured."""
LONGEST_RECORDING = 30 * 60.0
MOST_SAMPLES = 1 << 28


@dataclass(frozen=True)
class Recording:
    """Mono sound."""

    samples: np.ndarray
    """fp32 ``[n]``"""
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


def read_recording(data: bytes) -> Recording:
    """A sound file, checked before it is decoded. Raises ApiError."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = int(file.samplerate), int(file.frames)
            long = frames > LONGEST_RECORDING * rate or frames * file.channels > MOST_SAMPLES
            if long or not 1000 <= rate <= 768_000:
                raise wrong(f"file: recordings of at most {LONGEST_RECORDING / 60:g} minutes are read", "file")
            sound = file.read(frames, dtype="float32", always_2d=True)  # [n, channels]
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise wrong("file: not a sound file that can be read (WAV, FLAC, OGG, MP3)", "file") from error
    if not len(sound) or not np.isfinite(sound).all():
        raise wrong("file: the recording is empty or damaged", "file")
    return Recording(sound.mean(1), rate)


def cut(recording: Recording) -> list[Recording]:
    """Pieces of at most ``LONGEST_PIECE`` seconds that follow each other, each ending where it is quietest."""
    samples, rate = recording.samples, recording.rate
    found = []
    while len(samples) > LONGEST_PIECE * rate:
        low, high, width = int(EARLIEST_CUT * rate), int(LONGEST_PIECE * rate), max(int(QUIET * rate), 1)
        count = (high - low) // width
        loudness = (samples[low : low + count * width] ** 2).reshape(count, width).mean(1)  # [count]
        at = low + int(loudness.argmin()) * width + width // 2
        found.append(Recording(samples[:at], rate))
        samples = samples[at:]
    return [*found, Recording(samples, rate)]


def as_wav(piece: Recording) -> bytes:
    """A piece as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, piece.samples, piece.rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
