"""The tensors of clipped linear layers, which bound their input and output."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
RANDOM_BOUND = 40.0
"""In random checkpoints: wider than what these models' activations reach."""


def clipped(name: str, shape: tuple[int, int], bounds: bool) -> Shapes:
    """A clipped linear layer: the weight, and four scalars beside it where clipping is on."""
    shapes: Shapes = {f"{name}.linear.weight": shape}
    return shapes | ({f"{name}.{bound}": () for bound in BOUNDS} if bounds else {})


def random_bound(name: str) -> tuple[float, float] | None:
    """Centre and spread of a bound in a random checkpoint; None for every other tensor."""
    kind = name.rpartition(".")[2]
    if kind not in BOUNDS:
        return None
    return (-RANDOM_BOUND if kind.endswith("min") else RANDOM_BOUND), 0.0
