"""Change of sampling rate by a polyphase windowed-sinc filter, in numpy."""

from __future__ import annotations

from math import gcd

import numpy as np

ZERO_CROSSINGS = 32
"""Zero crossings of the sinc on each side, counted at the lower of the two rates."""
KAISER_BETA = 10.0
"""Stop band near -100 dB."""
ROLLOFF = 0.945
"""Edge of the pass band, as a share of the lower rate's half."""
BLOCK_TAPS = 1 << 20
"""Taps applied at once, and at most in a table of filters: bounds memory."""
EXACT_TAPS = 1 << 18
"""A table with every phase may have so many: those of all common rates do."""
PHASES = 1024
"""Phases per period of the lower rate in the tables of others; the line between two is true to about -110 dB."""


def output_length(samples: int, rate: int, wanted: int) -> int:
    """Samples after resampling: the smallest number that covers the sound."""
    return -(-samples * wanted // rate)


def resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """``sound`` fp32 ``[n]`` at ``rate`` Hz to ``wanted`` Hz, fp32 ``[output_length]``.

    Output m lies at input time m * rate / wanted; each is a dot product of the input around it with the sinc shifted
    by the fraction, one of ``wanted / gcd`` phases. Where these are too many for a table, filters lie on the line
    between two neighbours. Silence is assumed beyond both ends.
    """
    if rate == wanted or not len(sound):
        return sound.astype(np.float32)
    common = gcd(rate, wanted)
    up, down = wanted // common, rate // common
    ratio = min(1.0, wanted / rate)
    cutoff, half = ROLLOFF * ratio, int(np.ceil(ZERO_CROSSINGS / ratio))
    phases = up if up * 2 * half <= EXACT_TAPS else int(np.ceil(PHASES * ratio))
    table = _filters(np.arange(phases + 1) / phases, half, cutoff)  # [phases + 1, 2 * half]
    count = output_length(len(sound), rate, wanted)
    padded = np.pad(sound.astype(np.float32), (half - 1, half + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)  # [n + 1, 2 * half], no copy
    out = np.empty(count, np.float32)
    for first in range(0, count, block := max(1, BLOCK_TAPS // (2 * half))):
        steps = np.arange(first, min(first + block, count), dtype=np.int64) * down
        near, rest = np.divmod(steps % up * phases, up)  # the phase before, and how far behind it in 1 / up
        heard = windows[steps // up]
        made = np.einsum("nk,nk->n", heard, table[near])
        if phases != up:
            made += (rest / up).astype(np.float32) * (np.einsum("nk,nk->n", heard, table[near + 1]) - made)
        out[first : first + len(steps)] = made
    return out


def _filters(fractions: np.ndarray, half: int, cutoff: float) -> np.ndarray:
    """Kaiser-windowed sincs for times ``fractions`` in 0..1 past the tap ``half - 1``: fp32 ``[n, 2 * half]``."""
    distance = np.arange(1 - half, half + 1)[None, :] - fractions[:, None]
    inside = np.sqrt(np.maximum(0.0, 1.0 - (distance / half) ** 2))
    taps = cutoff * np.sinc(cutoff * distance) * np.i0(KAISER_BETA * inside) / np.i0(KAISER_BETA)
    return (taps / taps.sum(-1, keepdims=True)).astype(np.float32)
