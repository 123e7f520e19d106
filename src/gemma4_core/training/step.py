"""One training step: loss, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor, dtypes

from gemma4_core.errors import InputError
from gemma4_core.model.differentiable import device_inputs
from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.loss import mean_loss
from gemma4_core.training.optimizer import TrainingOptimizer
from gemma4_core.training.step_graphs import CheckedBatch, capturable, reached, set_gradients, summed_step, whole_step

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


def train_step(
    model: GemmaModel,
    optimizer: Any,
    batch: GemmaTrainingBatch | Sequence[GemmaTrainingBatch],
    *,
    lr: float | None = None,
    max_norm: float | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Learn from a batch; the loss before the update, a detached fp32 scalar.

    Args:
        model: its trained tensors change in place.
        optimizer: from ``build_optimizer``, or any object with ``params``, ``step`` and ``zero_grad``.
        batch: one batch, or several whose gradients are added before the update, each target weighing the same.
        lr: learning rate of this step and those after it.
        max_norm: scale gradients down to this global norm; what it was is then ``optimizer.gradient_norm``.
        checkpointing: recompute layers in the backward pass, for less memory.

    Raises:
        InputError: a batch that does not fit the model, or an optimizer of another model.
    """
    trained = adopted(model, optimizer)
    if max_norm is not None and not (math.isfinite(max_norm) and max_norm > 0):
        raise InputError(f"max_norm {max_norm!r}: must be a finite number above 0")
    batches = [batch] if isinstance(batch, GemmaTrainingBatch) else list(batch)
    if not batches:
        raise InputError("train_step: no batch was given")
    prepared = [CheckedBatch.of(model, one) for one in batches]
    if lr is not None:
        trained.set_lr(lr)
    if not capturable(model, prepared) or not hasattr(trained.inner, "schedule_step"):
        loss, norm = accumulated(model, trained, prepared, max_norm, checkpointing)
    elif len(prepared) == 1:
        loss, norm = whole_step(model, trained, prepared[0], max_norm, checkpointing)
    else:
        loss, norm = summed_step(model, trained, prepared, max_norm, checkpointing)
    trained.gradient_norm = norm
    model.invalidate()
    return loss


def adopted(model: GemmaModel, optimizer: Any) -> TrainingOptimizer:
    """The optimizer as ours; a foreign one is known by the model's tensors among its ``params``."""
    if isinstance(optimizer, TrainingOptimizer):
        return optimizer
    held = {id(p) for p in getattr(optimizer, "params", ())}
    named = {name: t for name, t in model.named_tensors().items() if id(t) in held}
    if not named or not hasattr(optimizer, "step"):
        raise InputError(f"optimizer {type(optimizer).__name__} has none of the model's tensors; use build_optimizer")
    # captured steps live as long as the optimizer
    ours = optimizer.__dict__.setdefault("_gemma4_training", TrainingOptimizer(optimizer, named, {}, "own"))
    assert isinstance(ours, TrainingOptimizer)
    return ours


def accumulated(
    model: GemmaModel, optimizer: TrainingOptimizer, batches: Sequence[CheckedBatch], max_norm: float | None,
    checkpointing: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of one batch after the other, then the update; nothing is captured."""
    targets = sum(batch.count for batch in batches)
    total = Tensor.zeros((), dtype=dtypes.float32, device=model.device)
    sums: list[Tensor | None] = [None] * len(optimizer.params)
    for batch in batches:
        inputs = device_inputs(model, batch.ids, batch.media, batch.segments)
        labels = Tensor(batch.targets, device=model.device)
        loss = mean_loss(model, inputs, labels, checkpointing) * (batch.count / targets)
        for index, grad in enumerate(loss.gradient(*optimizer.params)):
            if reached(grad):
                held = sums[index]
                wide = grad if len(batches) == 1 else grad.cast(dtypes.float32)
                sums[index] = (wide if held is None else held + wide).contiguous()
        total = total + loss
        total = total.realize(*(s for s in sums if s is not None)).detach()
    norm = set_gradients(optimizer, sums, max_norm)
    norm = None if norm is None else norm.contiguous().realize()
    optimizer.step()
    optimizer.zero_grad()
    return total, norm
