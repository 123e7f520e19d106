"""One training step: loss, gradients, update. Text-only steps are captured once per shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, TinyJit, dtypes
from tinygrad.helpers import Context as TinygradContext
from tinygrad.nn.optim import Optimizer as TinygradOptimizer

from gemma4_core.errors import InputError
from gemma4_core.training.batch import GemmaTrainingBatch, checked
from gemma4_core.training.forward import Fed, feed
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
) -> Tensor:
    """Learn from a batch; the loss before the update, a detached fp32 scalar.

    Args:
        model: its trained tensors change in place.
        optimizer: from ``build_optimizer``, or any object with ``params``, ``step`` and ``zero_grad``.
        batch: one batch, or several whose gradients are added before the update, each target weighing the same.
        lr: learning rate of this step and those after it.
        max_norm: scale gradients down to this global norm.
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
    prepared = [checked(model, one) for one in batches]
    if lr is not None:
        trained.set_lr(lr)
    capturable = len(batches) == 1 and not batches[0].media and hasattr(trained.inner, "schedule_step")
    if capturable and model.ple_host is None:
        loss = captured(model, trained, *prepared[0], max_norm, checkpointing)
    else:
        loss = accumulated(model, trained, batches, prepared, max_norm, checkpointing)
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
    kept = optimizer.__dict__.setdefault("_gemma4_training", TrainingOptimizer(optimizer, named, {}, "own"))
    assert isinstance(kept, TrainingOptimizer)
    return kept


def captured(
    model: GemmaModel, optimizer: TrainingOptimizer, ids: np.ndarray, targets: np.ndarray, max_norm: float | None,
    checkpointing: bool,
) -> Tensor:
    """Loss, gradients and update as one graph, captured for the shape of the ids."""
    key = (id(model), ids.shape, max_norm, checkpointing)
    if key not in optimizer.graphs:
        # tables are made before the capture, which would take them for results of its own
        fed = feed(model, ids, {})
        model.text.rotation_table(max(512, 1 << (int(fed.ids.shape[1]) - 1).bit_length()))

        def step(ids: Tensor, targets: Tensor) -> Tensor:
            with TinygradContext(TRAINING=1):
                loss = mean_loss(model, Fed(ids), targets, checkpointing)
                set_gradients(optimizer, loss.gradient(*optimizer.params), max_norm)
                changed = optimizer.inner.schedule_step()
                optimizer.zero_grad()
                return loss.realize(*changed)

        optimizer.graphs[key] = TinyJit(step)
    upload = lambda array: Tensor(array, device=model.device).clone().realize()  # noqa: E731
    result: Tensor = optimizer.graphs[key](upload(ids), upload(targets))
    return result.detach().clone().realize()  # the graph's own buffer changes with its next run


def accumulated(
    model: GemmaModel,
    optimizer: TrainingOptimizer,
    batches: Sequence[GemmaTrainingBatch],
    prepared: Sequence[tuple[np.ndarray, np.ndarray]],
    max_norm: float | None,
    checkpointing: bool,
) -> Tensor:
    """Gradients of one batch after the other, then the update; nothing is captured."""
    counts = [int((targets >= 0).sum()) for _, targets in prepared]
    total = Tensor.zeros((), dtype=dtypes.float32, device=model.device)
    sums: list[Tensor | None] = [None] * len(optimizer.params)
    for batch, (ids, targets), count in zip(batches, prepared, counts, strict=True):
        share = count / sum(counts)
        fed = feed(model, ids, batch.media)
        loss = mean_loss(model, fed, Tensor(targets, device=model.device), checkpointing) * share
        grads = loss.gradient(*optimizer.params)
        for index, grad in enumerate(grads):
            if reached(grad):
                held = sums[index]
                wide = grad if len(batches) == 1 else grad.cast(dtypes.float32)
                sums[index] = (wide if held is None else held + wide).contiguous()
        total = total + loss
        total = total.realize(*(s for s in sums if s is not None)).detach()
    set_gradients(optimizer, sums, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def reached(gradient: Tensor | None) -> bool:
    """Whether the loss depends on a tensor at all: tinygrad gives a constant where it does not."""
    return gradient is not None and gradient.uop.device is not None


def set_gradients(
    optimizer: TrainingOptimizer, gradients: Sequence[Tensor | None], max_norm: float | None
) -> None:
    """Put gradients where optimizers look for them, scaled down to a global norm where one is given.

    Tensors that the loss does not depend on get none; tinygrad's own optimizers, which need one, get zeros.
    """
    needed = isinstance(optimizer.inner, TinygradOptimizer)
    found = [g for g in gradients if g is not None and reached(g)]
    factor = None
    if max_norm is not None:
        norm = Tensor.stack(*(g.cast(dtypes.float32).square().sum() for g in found)).sum().sqrt()
        factor = (max_norm / norm.maximum(1e-12)).minimum(1.0)
    for param, gradient in zip(optimizer.params, gradients, strict=True):
        if gradient is None or not reached(gradient):
            param.grad = param.zeros_like().contiguous() if needed else None
        else:
            param.grad = gradient if factor is None else (gradient * factor).cast(gradient.dtype)
