"""Training steps as captured graphs: one for each shape that comes up, held by the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context as TinygradContext
from tinygrad.nn.optim import Optimizer as TinygradOptimizer

from gemma4_core.model.differentiable import DeviceInputs, check_length, rotation_table
from gemma4_core.model.media import PlacedPrompt, encode_arranged, place_arranged
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.training.batch import GemmaTrainingBatch, check_segments, checked
from gemma4_core.training.loss import mean_loss

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel
    from gemma4_core.training.optimizer import TrainingOptimizer

PARTS = 128
"""Pieces of a tensor whose squares are summed side by side."""
TOGETHER = 16
"""Tensors that one kernel reads; some devices allow no more than 31."""


@dataclass(frozen=True)
class CheckedBatch:
    """A batch that fits the model."""

    ids: np.ndarray
    """int32 ``[B, T]``."""
    targets: np.ndarray
    """int32 ``[B, T]``, -100 where there is none."""
    segments: np.ndarray | None
    media: dict[str, Any]
    placed: PlacedPrompt | None = None
    """Ids with the media arranged on the host; None without, and where one of their towers does not arrange."""

    @classmethod
    def of(cls, model: GemmaModel, batch: GemmaTrainingBatch) -> CheckedBatch:
        """Raises InputError for a batch that does not fit."""
        ids, targets = checked(model, batch)
        check_length(model, ids)
        media = batch.media
        return cls(ids, targets, check_segments(batch.segments, ids), media, place_arranged(model, ids, media))

    @property
    def count(self) -> int:
        """Targets."""
        return int((self.targets >= 0).sum())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a graph takes, by name; arrays of media under the tower's name and a number."""
        found = {"ids": self.ids, "targets": self.targets, "segments": self.segments}
        if self.placed is not None:
            p = self.placed
            found |= {"ids": p.ids, "soft": p.soft, "positions": p.soft_positions, "blocks": p.blocks}
            found |= {f"{name}/{i}": a for name, arrays in p.arranged.items() for i, a in enumerate(arrays)}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a graph is captured for."""
        return tuple((name, array.shape) for name, array in self.arrays.items())

    def upload(self, model: GemmaModel) -> dict[str, Tensor]:
        """The arrays on the device."""
        return {name: upload(array, model.device) for name, array in self.arrays.items()}


def capturable(model: GemmaModel, batches: Sequence[CheckedBatch]) -> bool:
    """Whether the graphs of this module serve these batches: tables off the device and towers that do not arrange run
    outside of them."""
    return model.ple_host is None and not any(batch.media and batch.placed is None for batch in batches)


def device_inputs(model: GemmaModel, inputs: Mapping[str, Tensor]) -> DeviceInputs:
    """What the forward pass starts from, out of what ``CheckedBatch.upload`` gives; towers run here."""
    media: dict[str, list[Tensor]] = {}
    for name, tensor in inputs.items():
        if "/" in name:
            media.setdefault(name.split("/")[0], []).append(tensor)
    optional = {name: inputs.get(name) for name in ("soft", "positions", "blocks", "segments")}
    return DeviceInputs(inputs["ids"], encode_arranged(model, media) if media else None, **optional)


def graph_loss(model: GemmaModel, inputs: Mapping[str, Tensor], checkpointing: bool) -> Tensor:
    """The loss of what ``CheckedBatch.upload`` gives."""
    return mean_loss(model, device_inputs(model, inputs), inputs["targets"], checkpointing)


def whole_step(
    model: GemmaModel, optimizer: TrainingOptimizer, batch: CheckedBatch, max_norm: float | None, checkpointing: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, gradients and update of one batch as one graph. The loss, and the gradients' norm where it is limited."""

    def step(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        with TinygradContext(TRAINING=1):
            loss = graph_loss(model, inputs, checkpointing)
            gradients = loss.gradient(*optimizer.params)
            # the update is scheduled apart: for each tensor that is written tinygrad looks through all that leads there
            loss.realize(*(g for g in gradients if reached(g)))
            return loss, update(optimizer, gradients, max_norm)

    graph = graph_for(optimizer.graphs, ("whole", id(model), batch.shape, max_norm, checkpointing), step, model, batch)
    loss, norm = graph(batch.upload(model))
    return own(loss), None if norm is None else own(norm)


def summed_step(
    model: GemmaModel, optimizer: TrainingOptimizer, batches: Sequence[CheckedBatch], max_norm: float | None,
    checkpointing: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of several batches added up in fp32, then one update: a graph per shape, and one for the update."""

    def add(share: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        with TinygradContext(TRAINING=1):
            loss = graph_loss(model, inputs, checkpointing) * share.reshape(())
            gradients = loss.gradient(*optimizer.params)
            # as in a whole step
            loss.realize(*(g for g in gradients if reached(g)))
            changed = []
            for index, gradient in enumerate(gradients):
                if reached(gradient):
                    held = sum_of(optimizer, index)
                    held.assign(held + gradient.cast(dtypes.float32))
                    changed.append(held)
            Tensor.realize(*changed)
            return loss

    def finish() -> Tensor | None:
        with TinygradContext(TRAINING=1):
            sums = [optimizer.sums.get(index) for index in range(len(optimizer.params))]
            norm = update(optimizer, sums, max_norm)
            Tensor.realize(*(held.assign(held.zeros_like()) for held in optimizer.sums.values()))
            return norm

    def scalar(value: float) -> Tensor:
        return upload(np.array([value], np.float32), model.device)

    total, targets = scalar(0.0), sum(batch.count for batch in batches)
    for batch in batches:
        graph = graph_for(optimizer.graphs, ("add", id(model), batch.shape, checkpointing), add, model, batch)
        loss = graph(scalar(batch.count / targets), batch.upload(model))
        total = (total + loss).realize()
    norm = graph_for(optimizer.graphs, ("update", id(model), max_norm, tuple(optimizer.sums)), finish)()
    return total.reshape(()).detach().realize(), None if norm is None else own(norm)


def graph_for(
    graphs: dict[Any, Any], key: object, function: Callable[..., Any], model: GemmaModel | None = None,
    batch: CheckedBatch | None = None,
) -> Any:
    """The graph of a key, made where there is none; one that runs the model's layers is made for a batch."""
    if key not in graphs:
        if model is not None and batch is not None:
            # a capture would take a table that the model holds for a result of its own
            rotation_table(model, batch.ids.shape[1])
        graphs[key] = CapturedGraph(function)
    return graphs[key]


def own(result: Tensor) -> Tensor:
    """A copy of a graph's result, whose buffer changes with its next run."""
    return result.detach().clone().realize()


def sum_of(optimizer: TrainingOptimizer, index: int) -> Tensor:
    """Where the gradients of a parameter are added up: fp32, of its shape, zero between steps."""
    if index not in optimizer.sums:
        param = optimizer.params[index]
        zeros = Tensor.zeros(*param.shape, dtype=dtypes.float32, device=param.device)
        # made once, not with each run of the graph that is being captured
        with TinygradContext(CAPTURING=0):
            optimizer.sums[index] = zeros.contiguous().realize()
    return optimizer.sums[index]


def reached(gradient: Tensor | None) -> bool:
    """Whether the loss depends on a tensor at all: tinygrad gives a constant where it does not."""
    return gradient is not None and gradient.uop.device is not None


def update(
    optimizer: TrainingOptimizer, gradients: Sequence[Tensor | None], max_norm: float | None
) -> Tensor | None:
    """Limit realized gradients to a global norm, where one is given, and take the step; the norm before."""
    norm = set_gradients(optimizer, gradients, max_norm)
    changed = optimizer.inner.schedule_step()
    optimizer.zero_grad()
    # tinygrad makes what reads more than three buffers in one of its own and copies it, unless its fusing goes further
    further = 3 if getattr(optimizer.inner, "elementwise", False) else 0
    with TinygradContext(PCONTIG=further):
        Tensor.realize(*changed)
    return norm


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The root of the sum of all squares, an fp32 scalar.

    In kernels that many tensors have in common, and without one that reads them all: first ``PARTS`` sums of each
    tensor, which are then added ``TOGETHER`` at a time.
    """
    parts = [partial_squares(tensor) for tensor in tensors]
    while len(parts) > 1:
        groups = [parts[first : first + TOGETHER] for first in range(0, len(parts), TOGETHER)]
        parts = [sum(group[1:], group[0]).contiguous() for group in groups]
    return parts[0].sum().sqrt().contiguous()


def partial_squares(tensor: Tensor) -> Tensor:
    """Sums of squares of ``PARTS`` pieces of a tensor: fp32 ``[PARTS]``."""
    flat = tensor.flatten()
    filled = flat.pad(((0, -int(flat.shape[0]) % PARTS),))
    # [n] -> [PARTS, n / PARTS] -> [PARTS]
    return filled.reshape(PARTS, -1).cast(dtypes.float32).square().sum(1).contiguous()


def set_gradients(
    optimizer: TrainingOptimizer, gradients: Sequence[Tensor | None], max_norm: float | None
) -> Tensor | None:
    """Put gradients where optimizers look for them, scaled down to a global norm where one is given; the norm before.

    Tensors that the loss does not depend on get none; tinygrad's own optimizers, which need one, get zeros.
    """
    needed = isinstance(optimizer.inner, TinygradOptimizer)
    found = [g for g in gradients if g is not None and reached(g)]
    norm = factor = None
    if max_norm is not None:
        norm = global_norm(found)
        factor = (max_norm / norm.maximum(1e-12)).minimum(1.0).contiguous()
        Tensor.realize(norm, factor)
    for param, gradient in zip(optimizer.params, gradients, strict=True):
        if gradient is None or not reached(gradient):
            param.grad = param.zeros_like().contiguous() if needed else None
        else:
            param.grad = gradient if factor is None else (gradient * factor).cast(gradient.dtype)
    return norm
