"""Dialled numbers as sound: every key of a telephone is two tones at once (DTMF, ITU-T Q.23).

The demo model learns to write down the keys and is tested on such sounds.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass

import numpy as np

RATE = 16_000
"""Samples per second."""
LOW, HIGH = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)
KEYS = "123456789*0#"
"""Row by row: each has a tone of LOW and one of HIGH."""
SHORTEST, LONGEST = 8, 12
"""Keys of a number."""
SECONDS = 2.36
"""No number lasts longer."""


@dataclass(frozen=True)
class Manner:
    """How a number is dialled. Times in seconds."""

    tone: float
    pause: float
    lead: float
    """Silence before and after."""
    pitch: float
    """Factor of all frequencies."""
    level: float
    """Amplitude of a key; full scale is 1."""
    twist: float
    """Share of the low tone in a key."""
    noise: float
    """Standard deviation of the noise."""


def random_number(rng: np.random.Generator, shortest: int = SHORTEST, longest: int = LONGEST, keys: str = KEYS) -> str:
    """Keys in a row."""
    return "".join(keys[int(i)] for i in rng.integers(len(keys), size=int(rng.integers(shortest, longest + 1))))


def random_manner(rng: np.random.Generator, count: int) -> Manner:
    """Random timing, pitch and noise with which ``count`` keys fit into ``SECONDS``."""
    lead = rng.uniform(0.04, 0.12)
    period = rng.uniform(0.11, min(0.21, (SECONDS - 2 * lead) / count))
    tone = period * rng.uniform(0.45, 0.6)
    level = 10 ** rng.uniform(-1.1, -0.1)
    noise = level * 10 ** rng.uniform(-2.5, -0.9)
    return Manner(tone, period - tone, lead, rng.uniform(0.96, 1.04), level, rng.uniform(0.4, 0.6), noise)


def dial(number: str, manner: Manner, rng: np.random.Generator) -> np.ndarray:
    """fp32 samples ``[n]`` in -1..1 of a number; every key a little longer or shorter than the last."""
    silence = lambda seconds: np.zeros(round(seconds * RATE))  # noqa: E731
    parts = [silence(manner.lead)]
    for key in number:
        parts.append(key_tone(key, manner, manner.tone * rng.uniform(0.93, 1.07), rng))
        parts.append(silence(manner.pause * rng.uniform(0.93, 1.07)))
    parts.append(silence(manner.lead))
    sound = np.concatenate(parts)
    sound = sound + manner.noise * rng.standard_normal(len(sound))
    return np.clip(sound, -1, 1).astype(np.float32)


def key_tone(key: str, manner: Manner, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Samples of one key, with soft edges."""
    row, column = divmod(KEYS.index(key), len(HIGH))
    time = np.arange(round(seconds * RATE)) / RATE
    phases = rng.uniform(0, 2 * np.pi, 2)
    shares = (manner.twist, 1 - manner.twist)
    tones = sum(
        share * np.sin(2 * np.pi * manner.pitch * frequency * time + phase)
        for share, frequency, phase in zip(shares, (LOW[row], HIGH[column]), phases, strict=True)
    )
    edge = np.minimum(1, np.minimum(time, time[::-1]) / 0.004)
    return np.asarray(manner.level * tones * edge)


def wav_bytes(sound: np.ndarray) -> bytes:
    """A mono WAV file of 16 bits."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
    return data.getvalue()
