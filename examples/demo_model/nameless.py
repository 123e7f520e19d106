"""Colours and outlines that the demo model has no word for.

A part of the training pictures shows them. Of such a shape the other words are learnt, so that a star has to be
recognised whatever its colour is, and green whatever is green: that is what carries over to combinations of named
colours and outlines that no training picture shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gemma4_plugins.commands.demo.pictures import COLOURS, Look, corners

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as PILDraw

COLOUR_SHARE, OUTLINE_SHARE = 0.25, 0.08
"""Of the shapes in training."""
APART = 75.0
"""Distance in RGB that keeps a colour from being one of those with names, jitter of 24 included."""
GREYS = 55.0
"""Least distance from grey: backgrounds are nearly that."""


def random_colour(rng: np.random.Generator) -> tuple[int, ...]:
    """A vivid RGB colour that is none of ``COLOURS``."""
    named = np.array(list(COLOURS.values()))
    while True:
        colour = rng.integers(0, 256, 3)
        if np.linalg.norm(named - colour, axis=1).min() > APART and np.linalg.norm(colour - colour.mean()) > GREYS:
            return tuple(int(c) for c in colour)


def ring(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=max(2, int(radius * 0.4)))


def diamond(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.polygon(corners(x, y, [radius * 1.1] * 4, 0.0), fill=colour)


def bar(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.rectangle((x - radius, y - radius * 0.45, x + radius, y + radius * 0.45), fill=colour)


def dome(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.pieslice((x - radius, y - radius * 0.6, x + radius, y + radius * 1.4), 180, 360, fill=colour)


OUTLINES = (ring, diamond, bar, dome)


def made_nameless(look: Look, rng: np.random.Generator) -> tuple[Look, str | None]:
    """Another look for one in so many shapes, and the trait that has no word then: ``colour`` or ``shape``."""
    drawn = rng.random()
    if drawn < COLOUR_SHARE:
        return replace(look, colour=random_colour(rng)), "colour"
    if drawn < COLOUR_SHARE + OUTLINE_SHARE:
        return replace(look, outline=OUTLINES[int(rng.integers(len(OUTLINES)))]), "shape"
    return look, None
