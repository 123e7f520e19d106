"""One training step: loss, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor, dtypes

from gemma4_core.errors import InputError
from gemma4_core.model.differentiable import device_inputs
from gemma4_core.ops.dropout import dropping
from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.gradients import reached
from gemma4_core.training.loss import mean_loss
from gemma4_core.training.optimizer import TrainingOptimizer

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
    step: int | None = None,
) -> Tensor:
    """Learn from a batch; the loss before the update, a detached fp32 scalar.

    Args:
        model: its trained tensors change in place.
        optimizer: from ``build_optimizer``, or any object with ``params``, ``step`` and ``zero_grad``.
        batch: one batch, or several whose gradients are added before the update, each target weighing the same.
        lr: learning rate of this step and those after it.
        max_norm: scale gradients down to this global norm; what it was is then ``optimizer.gradient_norm``.
        checkpointing: recompute layers in the backward pass, for less memory.
        step: number of the step, which dropout is drawn from; None counts the optimizer's steps.

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
    steps, begin = trained.steps(model), beginning(model, trained.taken if step is None else step)
    if steps.serve(prepared):
        loss, gradients = steps.run(prepared, checkpointing, begin)
    else:
        with dropping():
            loss, made = accumulated(model, trained, prepared, checkpointing, begin)
        gradients = steps.hold(made, len(prepared) > 1)
    trained.gradient_norm = trained.update(gradients, max_norm)
    trained.taken += 1
    model.invalidate()
    return loss


def beginning(model: GemmaModel, step: int) -> Callable[[int], None]:
    """What is called with a batch's number before it runs in a step."""
    part = model.trained_part
    return (lambda batch: None) if part is None or part.begin is None else partial(part.begin, step)


def adopted(model: GemmaModel, optimizer: Any) -> TrainingOptimizer:
    """The optimizer as ours; a foreign one is known by the model's tensors among its ``params``."""
    if isinstance(optimizer, TrainingOptimizer):
        return optimizer
    held = {id(p) for p in getattr(optimizer, "params", ())}
    named = {name: t for name, t in model.named_tensors().items() if id(t) in held}
    if not named or not hasattr(optimizer, "step"):
        raise InputError(f"optimizer {type(optimizer).__name__} has none of the model's tensors; use build_optimizer")
    # linked steps live as long as the optimizer
    ours = optimizer.__dict__.setdefault("_gemma4_training", TrainingOptimizer(optimizer, named, {}, "own"))
    assert isinstance(ours, TrainingOptimizer)
    return ours


def accumulated(
    model: GemmaModel, optimizer: TrainingOptimizer, batches: Sequence[CheckedBatch], checkpointing: bool,
    begin: Callable[[int], None],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss, and gradients of one batch after the other added up, traced anew for each."""
    targets = sum(batch.count for batch in batches)
    total = Tensor.zeros((), dtype=dtypes.float32, device=model.device)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        begin(number)
        inputs = device_inputs(model, batch.ids, batch.media, batch.segments)
        labels = Tensor(batch.targets, device=model.device)
        loss = mean_loss(model, inputs, labels, checkpointing) * (batch.count / targets)
        for name, grad in zip(optimizer.named_params, loss.gradient(*optimizer.params), strict=True):
            if reached(grad):
                wide = grad if len(batches) == 1 else grad.cast(dtypes.float32)
                sums[name] = (sums[name] + wide if name in sums else wide).contiguous()
        total = total + loss
        total = total.realize(*sums.values()).detach()
    return total, sums
