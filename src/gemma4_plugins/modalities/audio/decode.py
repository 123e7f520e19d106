"""Reading sound: files through libsndfile (WAV, FLAC, OGG, MP3, AIFF, …), arrays as they are; mixed down to one
channel and resampled. Lengths are checked before samples are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.processing.sources import MediaSource, resolve
from gemma4_core.silence import silent_stderr
from gemma4_plugins.modalities.audio.resample import resample

LOWEST_RATE, HIGHEST_RATE = 1000, 768_000
MAX_CHANNELS = 64
LOUDEST = 1e15
"""Samples are from -1 to 1; sums of squares of those above this overflow."""
SLACK_SECONDS = 0.1
"""A clip may overrun the limit by so much, as encoders pad, and is cut without a word."""
BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """The model's sampling rate and the longest clip it takes; longer ones are refused unless ``truncate``."""

    rate: int = 16_000
    seconds: float = 30.0
    truncate: bool = False

    def keep(self, samples: float, rate: int, name: str) -> int:
        """How many of ``samples`` at ``rate`` to keep. Raises InputError for a clip that is too long."""
        most = int(self.seconds * rate)
        if samples <= most:
            return int(samples)
        if not self.truncate and samples > most + SLACK_SECONDS * rate:
            raise InputError(f"{name}: lasts {spoken(samples / rate)}, longer than the {self.seconds:g} s that the "
                             "model takes; cut it, or pass --audio-truncate (audio_truncate=True) to use its beginning")
        return most


def spoken(seconds: float) -> str:
    """A length of time for messages."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def read_sound(source: Any, limits: Limits, allow_urls: bool = False) -> tuple[np.ndarray, str]:
    """Mono samples fp32 ``[n]`` at ``limits.rate``, and a name for messages.

    Takes a path, bytes, file object, ``MediaSource``, an array ``[n]`` or ``[n, channels]`` at that rate, a pair
    ``(array, rate)``, or a mapping with ``array`` and ``sampling_rate``. Floats are in -1..1, integers in the range
    of their type. Raises InputError naming the source.
    """
    source = resolve(source, allow_urls)
    if isinstance(source, MediaSource):
        sound, rate = _read_file(source, limits)
        name = str(source)
    else:
        sound, rate, name = _from_array(source, limits)
    bad = np.flatnonzero(~(np.abs(sound) <= LOUDEST))  # NaN is not
    if len(bad):
        raise InputError(f"{name}: holds {len(bad)} samples that are NaN or infinite, the first at {bad[0]} (above "
                         f"{LOUDEST:g} counts as infinite)")
    return resample(sound, rate, limits.rate), name


def _read_file(source: MediaSource, limits: Limits) -> tuple[np.ndarray, int]:
    import soundfile

    with source.open() as file, _quiet(file):
        try:
            with soundfile.SoundFile(SeekableFile(file)) as sound:
                _check_header(sound.samplerate, sound.channels, str(source))
                rate = int(sound.samplerate)
                # some formats do not know their length before they are decoded: then the blocks below are counted
                known = sound.frames if 0 <= sound.frames < 1 << 62 else 0
                limits.keep(known, rate, str(source))
                return _mono(sound, limits, str(source)), rate
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"{source}: the sound does not fit in memory") from None
        except Exception as error:
            # libsndfile reports damage and unknown codecs alike; soundfile raises TypeError for raw files
            reason = str(getattr(error, "error_string", None) or error).split(": ")[-1].strip(" .")[:120]
            reason = "the file is damaged" if "not a regular file" in reason else reason
            raise InputError(f"{source}: is not sound that can be read (WAV, FLAC, OGG, MP3): {reason}; convert it, "
                             "for instance to WAV") from None


class SeekableFile:
    """A file for soundfile's callbacks, which print exceptions: a place that damaged headers name and no file has is
    not gone to, and libsndfile then tells of the damage."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place where there is one; the place."""
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self.tell()

    def write(self, data: bytes) -> int:
        """Nothing is written; soundfile wants the method."""
        return 0


def _quiet(file: BinaryIO) -> AbstractContextManager[None]:
    """The MP3 decoder inside libsndfile writes warnings about damaged files straight to file descriptor 2: hold them
    back for files that it may take."""
    head = file.read(4)
    file.seek(0)
    return nullcontext() if head in (b"RIFF", b"fLaC", b"OggS", b"FORM") else silent_stderr()


def _mono(sound: Any, limits: Limits, name: str) -> np.ndarray:
    """Decode block by block until the limit, mixing down."""
    most = int((limits.seconds + SLACK_SECONDS) * sound.samplerate) + 1
    parts: list[np.ndarray] = []
    count = 0
    while count < most:
        block = sound.read(min(BLOCK_FRAMES, most - count), dtype="float32", always_2d=True)  # [frames, channels]
        if not len(block):
            break
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite or NaN is told by the caller
            parts.append(block.mean(1, dtype=np.float32))
        count += len(block)
    if not count:
        raise InputError(f"{name}: holds no sound (0 samples)")
    return np.concatenate(parts)[: limits.keep(count, sound.samplerate, name)]


def _check_header(rate: Any, channels: int, name: str) -> None:
    whole = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool) and rate % 1 == 0
    if not whole:
        raise InputError(f"{name}: sampling rate {str(rate)[:40]!r} is not a whole number of Hz")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        shown = str(rate) if abs(rate) < 1e15 else "above 1e15"
        raise InputError(f"{name}: sampling rate {shown} Hz is outside {LOWEST_RATE} to {HIGHEST_RATE}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(f"{name}: {channels} channels; at most {MAX_CHANNELS} are mixed down")


def _from_array(source: Any, limits: Limits) -> tuple[np.ndarray, int, str]:
    rate: Any = limits.rate
    if isinstance(source, Mapping) and "array" in source:
        source, rate = source["array"], source.get("sampling_rate", limits.rate)
    elif isinstance(source, tuple | list) and len(source) == 2 and np.ndim(source[1]) == 0 and np.ndim(source[0]) > 0:
        source, rate = source
    if not (hasattr(source, "__array__") or hasattr(source, "__array_interface__")):
        raise InputError(f"audio {str(source)[:80]!r} is a {type(source).__name__}; give a path, bytes, an array, or "
                         "(array, sampling rate)")
    array = np.asarray(source)
    name = f"audio array of shape {str(list(array.shape))[:80]}"
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T  # [channels, samples] -> [samples, channels]
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise InputError(f"{name} and dtype {array.dtype}: expected numbers [samples] or [samples, channels]")
    _check_header(rate, 1 if array.ndim == 1 else array.shape[1], name)
    if not array.size:
        raise InputError(f"{name}: holds no sound (0 samples)")
    array = array[: limits.keep(len(array), int(rate), name)]
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite or NaN is told by the caller
        mono = array if array.ndim == 1 else array.mean(1)  # before anything is copied: there may be 64 channels
        if array.dtype.kind in "iu":
            scale = 2.0 ** (8 * array.dtype.itemsize - 1)
            mono = mono / scale - (1.0 if array.dtype.kind == "u" else 0.0)
        return mono.astype(np.float32), int(rate), name
