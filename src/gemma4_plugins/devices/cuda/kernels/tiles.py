"""Which tiles a product is made in, and how many pieces of its depth are summed side by side."""

from __future__ import annotations

from dataclasses import dataclass

FULL_CARD = 132
"""Multiprocessors of the card that times were taken on."""
HOPPER_ROWS, HOPPER_STAGES, HOPPER_DEPTH = 128, 4, 64
HOPPER_LEAST_K = 512
"""With fewer steps a tile alone on its multiprocessor waits for its first and last bytes too long: at 256 the other
kernel, of which two run side by side, makes 125 TFLOP/s to 101. Measured there and from 768 on."""
PIECES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LEAST_DEPTH = 256
"""Of a piece."""
START = 3.0
"""Microseconds until a tile's first bytes are there and its last ones written."""
ADDING, ADDED = 5.0, 3.5e6
"""Microseconds that the sum of pieces takes at least, and bytes that it reads and writes in each."""

WORTH = 1.1
"""Cuts are to bring this factor."""


@dataclass(frozen=True)
class Tile:
    """A kernel's tile, with the time of a step along the depth, in microseconds: ``alone`` on its multiprocessor, and
    ``shared`` for each of many that wait for each other's matrix units."""

    rows: int
    columns: int
    warps: tuple[int, int] | None
    """The grid that they stand in; None is Hopper's kernel."""
    step: int
    """Of the depth."""
    alone: float
    shared: float

    def blocks(self, m: int, n: int) -> int:
        return -(-m // self.rows) * -(-n // self.columns)

    def time(self, m: int, n: int, depth: int, count: int, pieces: int) -> float:
        """Microseconds that a product takes, about: ``count`` pairs of matrices, ``depth`` in ``pieces``."""
        resident = -(-self.blocks(m, n) * count * pieces // FULL_CARD)
        steps = -(-depth // (self.step * pieces))
        time = START + steps * max(self.alone, self.shared * resident)
        return time if pieces == 1 else WORTH * (time + ADDING + 8 * pieces * m * n / ADDED)

    @property
    def threads(self) -> int:
        return 256 if self.warps is None else 32 * self.warps[0] * self.warps[1]


GENERAL = (Tile(128, 128, (2, 4), 32, 0.6, 0.5), Tile(64, 64, (2, 2), 32, 0.42, 0.21))
HOPPER = (Tile(HOPPER_ROWS, 128, None, HOPPER_DEPTH, 0.6, 0.6), Tile(HOPPER_ROWS, 256, None, HOPPER_DEPTH, 1.0, 1.0))


def chosen(m: int, n: int, k: int, count: int, hopper: bool) -> tuple[Tile, int]:
    """The tile, and the pieces of the depth, with which a product is through first. Several products are not cut."""
    tiles = (*HOPPER, *GENERAL) if hopper and k >= HOPPER_LEAST_K else GENERAL
    most = max(1, k // LEAST_DEPTH) if count == 1 else 1
    options = [(tile, pieces) for tile in tiles for pieces in PIECES if pieces <= most]
    return min(options, key=lambda option: option[0].time(m, n, k, count, option[1]))
