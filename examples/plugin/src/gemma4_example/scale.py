"""Model transform ``scale``: multiplies matrices by a factor, whatever format they are stored in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from gemma4_core import InputError, ModelTransform, Option, hookimpl

if TYPE_CHECKING:
    from gemma4_core import GemmaModel

FLAG = "--scale-matrix"


def apply(model: GemmaModel, values: Mapping[str, Any]) -> None:
    """Put a scaled matrix in the place of each one that a ``NAME=FACTOR`` names."""
    from gemma4_core import Matrix
    from gemma4_example.scaled import ScaledMatrix

    for text in values["scale_matrix"]:
        pattern, factor = parse(text)
        names = [name for name in model.places if fnmatchcase(name, pattern)]
        if not names:
            raise InputError(f"{FLAG} '{text}': no matrix has such a name, for example {next(iter(model.places))}")
        for name in names:
            matrix = model.places[name].matrix
            if not isinstance(matrix, Matrix):
                raise InputError(f"{FLAG} '{text}': {name} is a stack of experts, not a matrix")
            model.places[name].matrix = ScaledMatrix(matrix, factor)
    model.invalidate()


def parse(text: str) -> tuple[str, float]:
    """Name pattern and factor. Raises InputError naming the text."""
    pattern, equals, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not equals or not pattern or not math.isfinite(factor):
        raise InputError(f"{FLAG} '{text[:100]}': NAME=FACTOR is expected, such as '*.o_proj.weight=0.5'")
    return pattern, factor


@hookimpl
def gemma4_model_transforms() -> list[ModelTransform]:
    help = "Multiply the matrices of this name (* is anything) by a factor."
    return [
        ModelTransform(
            name="scale",
            summary="multiplies matrices by a factor",
            apply=apply,
            options=(Option(FLAG, help, multiple=True, metavar="NAME=FACTOR"),),
        )
    ]
