"""Validation loss: on examples that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor

from gemma4_core.model.differentiable import device_inputs
from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.loss import mean_loss
from gemma4_core.training.step_graphs import CheckedBatch, capturable, graph_for, graph_loss

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found."""

    step: int
    """Steps done."""
    loss: float
    """The mean cross entropy over all targets."""
    lowest: bool
    """Whether no evaluation of the run before was lower."""
    stale: int
    """Evaluations since the last improvement; 0 where this is one."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return perplexity(self.loss)


class Evaluator:
    """Mean losses of a model as its weights are now, through graphs that are captured once per shape."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.graphs: dict[object, Any] = {}

    def loss(self, batches: Iterable[GemmaTrainingBatch]) -> float:
        """The mean cross entropy over all targets of the batches. Raises InputError for one that does not fit."""
        total, targets = 0.0, 0
        for batch in batches:
            one = CheckedBatch.of(self.model, batch)
            total += self._mean(one) * one.count
            targets += one.count
        return total / targets if targets else math.nan

    def _mean(self, batch: CheckedBatch) -> float:
        if not capturable(self.model, [batch]):
            inputs = device_inputs(self.model, batch.ids, batch.media, batch.segments)
            return mean_loss(self.model, inputs, Tensor(batch.targets, device=self.model.device)).item()

        def loss(inputs: dict[str, Tensor]) -> Tensor:
            return graph_loss(self.model, inputs, False).realize()

        return graph_for(self.graphs, batch.shape, loss, self.model, batch)(batch.upload(self.model)).item()


def perplexity(loss: float) -> float:
    """``exp(loss)``, infinite where that is too large to say."""
    return math.exp(loss) if loss < 700 else math.inf
