"""What cpu_training_ops.py and cuda_training_ops.py have in common: cases beside products, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.ops import portable
from gemma4_core.ops.fused import Fused, served
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.portable import capped, cross_entropy, gelu_tanh

EPS, CAP = 1e-6, 30.0
Form = tuple[int, ...] | tuple[tuple[int, ...], DType]
Work = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Case:
    """A kernel, what it is to give, and the shapes of its inputs, of the run's type unless they say otherwise."""

    name: str
    own: Work
    stock: Callable[..., Tensor]
    inputs: tuple[Form, ...]
    operations: int = 0
    form: str = ""
    """Of a plain product."""
    mask: Tensor | None = None
    """The first input is 0 where this is false."""

    def draw(self, rng: np.random.Generator, device: str, dtype: DType) -> list[Tensor]:
        """Random inputs."""
        drawn = []
        for form in self.inputs:
            shape, kind = form if isinstance(form[0], tuple) else (form, dtype)
            drawn.append(upload(rng.standard_normal(shape, np.float32), device, kind))  # type: ignore[arg-type]
        if self.mask is not None:
            drawn[0] = self.mask.where(drawn[0], 0.0).cast(drawn[0].dtype).contiguous().realize()
        return drawn

    def truth(self, inputs: Sequence[Tensor]) -> np.ndarray:
        """What the kernel is to give, in fp32."""
        return np.asarray(self.stock(*(t.float() for t in inputs)).float().numpy())

    def line(
        self, error: float, moved: int, seconds: float, others: Sequence[tuple[str, object]] = (), told: object = None
    ) -> str:  # fmt: skip
        """A line about a run that moved so many bytes; ``told`` is its time where a text says more than seconds."""
        line = f"{self.name}: error {error:.1e}, {microseconds(seconds) if told is None else told}, "
        line += f"{moved / seconds / 1e9:.1f} GB/s"
        line += f", {self.operations / seconds / 1e9:.0f} GFLOP/s" if self.operations else ""
        return line + "".join(f", {name} {time}" for name, time in others)


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def error_of(found: Tensor, truth: np.ndarray) -> float:
    """The largest error as a share of the largest value."""
    return float(np.abs(found.float().numpy() - truth).max() / np.abs(truth).max())


def norms(rows: int, kernels: Fused) -> Iterator[Case]:
    """Norms of the stream and of heads."""
    norm = portable().rms_norm

    def to_x(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return (norm(x, weight, EPS).float() * dy.float()).sum().gradient(x)[0]

    def to_weight(x: Tensor, dy: Tensor) -> Tensor:
        return (dy.float() * norm(x.float(), None, EPS)).sum(0)

    own, own_to_x, own_to_weight = map(
        served, (kernels.rms_norm, kernels.rms_norm_gradient, kernels.rms_norm_weight_gradient)
    )
    for m, n in ((rows, 1536), (8 * rows, 256)):
        yield Case(f"norm {m}x{n}", lambda x, w: own(x, w, EPS), lambda x, w: norm(x, w, EPS), ((m, n), (n,)))
        yield Case(f"norm's gradient {m}x{n}", lambda x, w, dy: own_to_x(x, w, EPS, dy), to_x, ((m, n), (n,), (m, n)))
        yield Case(f"norm weight's gradient {m}x{n}", lambda x, dy: own_to_weight(x, EPS, dy), to_weight,
                   ((m, n), (m, n)))


def mlps(rows: int, widths: Sequence[int], kernels: Fused) -> Iterator[Case]:
    """What stands between the products of a gated MLP."""
    forward, backward = served(kernels.gated), served(kernels.gated_gradients)

    def slopes(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor:
        return ((gelu_tanh(gate) * up).float() * dy.float()).sum().gradient((gate, up)[which])[0]

    def own(which: int, gate: Tensor, up: Tensor, dy: Tensor) -> Tensor | None:
        found = backward(gate, up, dy)
        return None if found is None else found[which]

    for width in widths:
        shape = rows, width
        yield Case(f"gated {rows}x{width}", forward, lambda gate, up: gelu_tanh(gate) * up, (shape, shape))
        for which, name in enumerate(("gate", "up")):
            yield Case(f"gated, gradient of {name} {rows}x{width}", partial(own, which), partial(slopes, which),
                       (shape, shape, shape))


def losses(rows: int, words: int, device: str, kernels: Fused) -> Iterator[Case]:
    """Cross entropy of a piece of rows."""
    targets = upload(np.random.default_rng(2).integers(-1, words, rows).astype(np.int32), device)
    ones = Tensor.ones(rows, dtype=dtypes.float32, device=device).contiguous().realize()
    forward, backward = served(kernels.cross_entropy), served(kernels.cross_entropy_gradient)

    def own(raw: Tensor) -> Tensor | None:
        found = forward(raw, targets, CAP)
        return None if found is None else found[:, 0]

    def gradient(raw: Tensor) -> Tensor | None:
        found = forward(raw, targets, CAP)
        return None if found is None else backward(raw, targets, CAP, found, ones)

    def stock(raw: Tensor) -> Tensor:
        return cross_entropy(capped(raw, CAP), targets)

    yield Case("losses", own, stock, ((rows, words),))
    yield Case("losses and their gradient", gradient, lambda raw: stock(raw).sum().gradient(raw)[0],
               ((rows, words),))
