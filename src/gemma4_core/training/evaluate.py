"""Validation loss: on examples that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinygrad import Tensor

from gemma4_core.model.differentiable import device_inputs
from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.loss import mean_loss
from gemma4_core.training.programs.steps import Steps

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
    """Mean losses of a model as its weights are now, through programs that are linked once per shape."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.steps = Steps(model, {})

    def loss(self, batches: Iterable[GemmaTrainingBatch]) -> float:
        """The mean cross entropy over all targets of the batches. Raises InputError for one that does not fit."""
        total, targets = 0.0, 0
        for batch in batches:
            one = CheckedBatch.of(self.model, batch)
            total += self._mean(one) * one.count
            targets += one.count
        return total / targets if targets else math.nan

    def _mean(self, batch: CheckedBatch) -> float:
        if self.steps.serve([batch]):
            return self.steps.run([batch])[0].item()
        inputs = device_inputs(self.model, batch.ids, batch.media, batch.segments)
        return mean_loss(self.model, inputs, Tensor(batch.targets, device=self.model.device)).item()


def perplexity(loss: float) -> float:
    """``exp(loss)``, infinite where that is too large to say."""
    return math.exp(loss) if loss < 700 else math.inf
