"""Pictures of two shapes and their descriptions, such as "a large red circle left of a small blue square".

The demo model learns from these and is tested on them. A scene has one description: the larger shape is named first,
of two equal ones the left or the upper one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageDraw import ImageDraw as PILDraw

    Outline = Callable[[PILDraw, float, float, float, tuple[int, ...]], None]
    """Fills a shape: centre and radius in pixels, RGB."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35), "orange": (245, 140, 20), "yellow": (245, 225, 40), "green": (30, 150, 55),
    "blue": (35, 70, 210), "purple": (130, 40, 160), "white": (250, 250, 250), "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (0.085, 0.11), "large": (0.18, 0.22)}
"""Radius of a shape, as a share of the picture's shorter side."""
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT = (
    ("large", "purple", "circle"), ("small", "blue", "cross"), ("large", "yellow", "triangle"),
    ("small", "red", "square"), ("large", "green", "star"), ("small", "white", "triangle"), ("large", "black", "cross"),
    ("small", "orange", "star"),
)
"""Combinations of size, colour and shape that no training picture shows."""


@dataclass(frozen=True)
class Shape:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str

    @property
    def held_out(self) -> bool:
        return (self.size, self.colour, self.shape) in HELD_OUT

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two shapes; ``first`` stands in ``relation`` to ``second``."""

    first: Shape
    relation: str
    second: Shape

    @property
    def held_out(self) -> bool:
        """Whether it shows a combination that training leaves out."""
        return self.first.held_out or self.second.held_out

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"


@dataclass(frozen=True)
class Choices:
    """The words that scenes are made of; fewer of them make an easier task."""

    colours: tuple[str, ...] = tuple(COLOURS)
    shapes: tuple[str, ...] = SHAPES
    relations: tuple[str, ...] = RELATIONS


EVERYTHING = Choices()


def random_scene(rng: np.random.Generator, held_out: bool = False, choices: Choices = EVERYTHING) -> Scene:
    """A scene that shows nothing of ``HELD_OUT``, or with ``held_out`` at least one such thing."""
    while True:
        pick = lambda options: str(options[int(rng.integers(len(options)))])  # noqa: E731
        one, two = (Shape(pick(tuple(SIZES)), pick(choices.colours), pick(choices.shapes)) for _ in range(2))
        if held_out:
            one = Shape(*HELD_OUT[int(rng.integers(len(HELD_OUT)))])
        if one.size != two.size:
            first, second = (one, two) if one.size == "large" else (two, one)
            relation = pick(choices.relations)
        else:
            first, second = (one, two) if rng.random() < 0.5 else (two, one)
            relation = pick(tuple(r for r in choices.relations if r in ("left of", "above")))
        scene = Scene(first, relation, second)
        if scene.held_out == held_out and (first.colour, first.shape) != (second.colour, second.shape):
            return scene


@dataclass(frozen=True)
class Look:
    """How a shape of a scene is drawn."""

    radius: float
    """Radius as a share of the picture's shorter side."""
    colour: tuple[int, ...]
    outline: Outline


def random_look(shape: Shape, rng: np.random.Generator) -> Look:
    """A look that fits the three words of a shape."""
    tint = rng.integers(-14, 15, 3)
    colour = tuple(int(c) for c in np.clip(np.array(COLOURS[shape.colour]) + tint, 0, 255))
    return Look(rng.uniform(*SIZES[shape.size]), colour, OUTLINES[shape.shape])


def draw(
    scene: Scene, rng: np.random.Generator, width: int = 256, height: int = 256, looks: list[Look] | None = None
) -> PILImage:
    """The scene as an RGB picture: a grey or tinted background with a gradient, jittered places, sizes and colours,
    noise. ``looks`` of both shapes, by default those that the scene's words describe."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(background(rng, width, height))
    canvas = ImageDraw.Draw(image)
    looks = looks or [random_look(shape, rng) for shape in (scene.first, scene.second)]
    radii = [min(width, height) * look.radius for look in looks]
    for look, radius, (x, y) in zip(looks, radii, places(scene, radii, rng, width, height), strict=True):
        look.outline(canvas, x, y, radius, look.colour)
    noise = int(rng.integers(0, 16))
    pixels = np.asarray(image, np.int16) + rng.integers(-noise, noise + 1, (height, width, 3), np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """uint8 ``[height, width, 3]`` between black and white, in a dull colour, lighter to one side."""
    base = rng.uniform(95, 185) + rng.uniform(-14, 14, 3)
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    slope = rng.uniform(-18, 18, 2)
    light = slope[0] * across[None, :] + slope[1] * down[:, None]  # [height, width]
    return np.clip(base + light[:, :, None], 0, 255).astype(np.uint8)


def places(
    scene: Scene, radii: list[float], rng: np.random.Generator, width: int, height: int
) -> list[tuple[float, float]]:
    """Centres of both shapes: apart along the relation's axis, close to each other across it."""
    first, second = radii
    sideways = scene.relation in ("left of", "right of")
    along, across = (width, height) if sideways else (height, width)
    gap = first + second + rng.uniform(0.03, 0.12) * min(width, height)
    room = along - first - second - gap - 4
    low = 2 + rng.uniform(0, max(room, 0))
    begins = scene.relation in ("left of", "above")
    ahead = first if begins else second
    start, end = low + ahead, low + ahead + gap
    middle = rng.uniform(max(radii) + 2, across - max(radii) - 2)
    drift = rng.uniform(-0.22, 0.22) * gap
    inside = lambda value, radius: float(np.clip(value, radius + 2, across - radius - 2))  # noqa: E731
    one = (start if begins else end, inside(middle + drift, first))
    two = (end if begins else start, inside(middle - drift, second))
    return [one, two] if sideways else [(one[1], one[0]), (two[1], two[0])]


def corners(x: float, y: float, radii: list[float], turn: float) -> list[tuple[float, float]]:
    """Points around a centre at these radii, evenly spaced, the first at an angle in turns from straight up."""
    angles = [2 * math.pi * (turn + index / len(radii)) for index in range(len(radii))]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


def circle(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def square(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    half = radius * 0.88
    canvas.rectangle((x - half, y - half, x + half, y + half), fill=colour)


def triangle(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.polygon(corners(x, y + radius * 0.2, [radius * 1.15] * 3, 0.0), fill=colour)


def star(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    canvas.polygon(corners(x, y, [radius * 1.1, radius * 0.45] * 5, 0.0), fill=colour)


def cross(canvas: PILDraw, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    thin = radius * 0.32
    canvas.rectangle((x - thin, y - radius, x + thin, y + radius), fill=colour)
    canvas.rectangle((x - radius, y - thin, x + radius, y + thin), fill=colour)


OUTLINES = {"circle": circle, "square": square, "triangle": triangle, "star": star, "cross": cross}
