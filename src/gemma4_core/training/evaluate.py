"""Loss on examples that are not learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor

from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.forward import feed
from gemma4_core.training.loss import mean_loss
from gemma4_core.training.step_graphs import Checked, capturable, graph_loss, kept

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


class Evaluator:
    """Mean losses of a model as its weights are now, through graphs that are captured once per shape."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.graphs: dict[object, Any] = {}

    def loss(self, batches: Iterable[GemmaTrainingBatch]) -> float:
        """The mean cross entropy over all targets of the batches. Raises InputError for one that does not fit."""
        total, targets = 0.0, 0
        for batch in batches:
            one = Checked.of(self.model, batch)
            total += self._mean(one) * one.count
            targets += one.count
        return total / targets if targets else math.nan

    def _mean(self, batch: Checked) -> float:
        if not capturable(self.model, [batch]):
            fed = feed(self.model, batch.ids, batch.media, batch.segments)
            return mean_loss(self.model, fed, Tensor(batch.targets, device=self.model.device)).item()
        loss = lambda inputs: graph_loss(self.model, inputs, False).realize()  # noqa: E731
        return kept(self.graphs, batch.shape, loss, self.model, batch)(batch.upload(self.model)).item()


def perplexity(loss: float) -> float:
    """``exp(loss)``, infinite where that is too large to say."""
    return math.exp(loss) if loss < 700 else math.inf
