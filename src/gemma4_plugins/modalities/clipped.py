"""Linear layers of the towers, with or without clipping, found by checkpoint name."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.contracts import WeightSource
from gemma4_core.ops.tower_table import Bounds, TowerOperations
from gemma4_core.ops.towers import clamp
from gemma4_core.weights import DenseMatrix, Matrix, Weight
from gemma4_plugins.modalities.clipped_tensors import BOUNDS


class TowerWeights:
    """A tower's weights under their names in the checkpoint. ``places`` hold the matrices of its linear layers, so
    that one can be wrapped or exchanged; everything else is in ``tensors``."""

    def __init__(
        self, source: WeightSource, shapes: Mapping[str, tuple[int, ...]], device: str, dtype: DType
    ) -> None:
        self.places: dict[str, Weight] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            tensor = source.tensor(name, device, dtype)
            if len(shape) == 2:
                self.places[name] = Weight(name, DenseMatrix(tensor, dtype))
            else:
                self.tensors[name] = tensor

    def parameters(self) -> dict[str, Tensor]:
        """Every tensor by full name, as held now."""
        return self.tensors | {n + s: t for n, w in self.places.items() for s, t in w.matrix.parts().items()}

    def below(self, prefix: str) -> Names:
        """The weights under a prefix."""
        return Names(self, prefix)


class Names:
    """A view of weights whose names begin with a prefix."""

    def __init__(self, weights: TowerWeights, prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.weights.tensors[self.prefix + name]

    def below(self, prefix: str) -> Names:
        return Names(self.weights, self.prefix + prefix)

    def linear(self, name: str) -> Linear:
        """The plain layer ``name.weight``."""
        return Linear(self.weights.places[f"{self.prefix}{name}.weight"], None)

    def clipped(self, name: str) -> Linear:
        """The layer ``name.linear.weight`` with the four bounds beside it, where the tower is clipped."""
        bounds = [self.weights.tensors.get(f"{self.prefix}{name}.{bound}") for bound in BOUNDS]
        found = [bound for bound in bounds if bound is not None]
        return Linear(self.weights.places[f"{self.prefix}{name}.linear.weight"], found or None)


class Linear:
    """``x @ weight.T``; a clipped one bounds its input and its output."""

    def __init__(self, place: Weight, bounds: list[Tensor] | None) -> None:
        self.place = place
        self.inner: Bounds | None = None
        self.outer: Bounds | None = None
        if bounds is not None:
            low, high, out_low, out_high = bounds
            self.inner, self.outer = (low, high), (out_low, out_high)

    def __call__(self, x: Tensor, ops: TowerOperations) -> Tensor:
        return clamp(self.unbounded(x, ops), self.outer)

    def unbounded(self, x: Tensor, ops: TowerOperations) -> Tensor:
        """Of ``x`` within its bounds, for a caller that bounds the output."""
        return self.product(ops.bounded(x, self.inner), ops)

    def product(self, x: Tensor, ops: TowerOperations) -> Tensor:
        """Without any bounds, for a caller that sees to them."""
        assert isinstance(self.place.matrix, Matrix)
        return ops.linear(x, self.place.matrix)
