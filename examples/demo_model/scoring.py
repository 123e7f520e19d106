"""How often the model's greedy answer is exactly right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tinygrad import Tensor

from demo_model.rows import Maker, Recipe, Rows
from gemma4_core.model import GemmaModel
from gemma4_core.model.differentiable import hidden, rotation_table
from gemma4_core.model.layers import matrix
from gemma4_core.ops import upload
from gemma4_core.ops.differentiable import differentiable_operations
from gemma4_core.ops.graphs import CapturedGraph
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.programs.inputs import device_inputs
from gemma4_plugins.commands.demo.pictures import EVERYTHING

SCORE_SEED = 1_000_003
"""Added to the seed of training: other pictures, sounds and texts."""


class Scorer:
    """Scores a model as its weights are now."""

    def __init__(self, model: GemmaModel, maker: Maker) -> None:
        self.model, self.maker = model, maker
        self.graphs: dict[object, Any] = {}
        self.everything = maker.recipe.choices == EVERYTHING
        """Whether training has met every word that new combinations need."""

    def right(self, rows: Rows) -> np.ndarray:
        """Of each row, whether greedy decoding gives its answer: bool ``[B]``.

        It does if and only if every target is the likeliest id after the right ids before it, so that one pass over
        question and answer tells.
        """
        arrays = CheckedBatch.of(self.model, rows.batch(self.maker.grid)).arrays
        shape = tuple((name, array.shape) for name, array in arrays.items())
        if shape not in self.graphs:
            # a capture would take a table that the model holds for a result of its own
            rotation_table(self.model, arrays["ids"].shape[1])
            self.graphs[shape] = CapturedGraph(self._right)
        inputs = {name: upload(array, self.model.device) for name, array in arrays.items()}
        return np.asarray(self.graphs[shape](inputs).numpy())

    def _right(self, inputs: Mapping[str, Tensor]) -> Tensor:
        text, targets = self.model.text, inputs["targets"]
        h = hidden(self.model, device_inputs(self.model, inputs))
        operations = differentiable_operations(self.model.operations)
        logits = operations.logits(h, matrix(text.embedding), text.config.final_logit_softcapping)
        wrong = (logits.argmax(-1) != targets) & (targets >= 0)  # [B, T]
        return (wrong.sum(1) == 0).contiguous().realize()

    def scores(self, seed: int, batches: int) -> dict[str, tuple[int, int]]:
        """Right answers and questions by task; ``new picture`` has combinations that were never trained."""
        found: dict[str, tuple[int, int]] = {}
        for number in range(batches):
            for new in (False, True) if self.maker.recipe.pictures and self.everything else (False,):
                rows = self.maker.make(np.random.default_rng([seed + SCORE_SEED, number, new]), True, new)
                right = self.right(rows)
                for kind in dict.fromkeys(rows.kinds):
                    mine = [r for r, k in zip(right, rows.kinds, strict=True) if k == kind]
                    name = "new picture" if new and kind == "picture" else kind
                    if not new or kind == "picture":
                        good, count = found.get(name, (0, 0))
                        found[name] = (good + sum(map(int, mine)), count + len(mine))
        return found


def scoring_recipe(recipe: Recipe) -> Recipe:
    """The tasks of a recipe in rows for scoring: sentences have no right answer."""
    return replace(recipe, sentences=0)
