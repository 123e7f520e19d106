"""Forward and backward pass over batches of one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import _to_np_dtype

from gemma4_core.engine.inputs import GraphInputs
from gemma4_core.errors import InputError
from gemma4_core.formatting import human_bytes
from gemma4_core.model.model import GemmaModel
from gemma4_core.training.programs.compiling import Form, Programs
from gemma4_core.training.programs.linking import Linking
from gemma4_core.training.programs.plan import Plan, Trained
from gemma4_core.training.programs.running import Replay, moved

TENSORS = ("ple_rows",)
"""Inputs that are given as tensors, others as arrays."""


class Pass:
    """The loss of batches of one shape, and its gradients where something trains."""

    def __init__(
        self, model: GemmaModel, programs: Programs, forms: Mapping[str, Form], trained: Trained, clear: bool
    ) -> None:
        """``forms`` are shapes and types of the batch's arrays. With ``clear`` sums of gradients begin at zero. Call
        ``link`` before the first run."""
        self.programs, self.clear, self.device = programs, clear, programs.device
        self.plan = Plan(model, forms, trained)
        programs.add(self.plan.tasks)
        self.put = GraphInputs(self.device)
        for name, (shape, dtype) in (self.plan.forms | {"scale": ((1,), dtypes.float32)}).items():
            if name in TENSORS:
                zeros = Tensor.zeros(*shape, dtype=dtype, device=self.device)
                self.put.tensors[name] = zeros.contiguous().realize()
            else:
                self.put.put(name, np.zeros(shape, _to_np_dtype(dtype)))
        self.loss = Tensor.zeros(1, dtype=dtypes.float32, device=self.device).contiguous().realize()
        self.bound = [(t, t.uop.base) for t in {id(t): t for t in self.plan.tensors}.values()]
        self.matrices = [(place, place.matrix) for place in model.places.values()]
        self.reached: dict[int, Tensor] = {}
        """Where the gradients of the parameters lie that the loss depends on."""
        self.kept_layers = 0
        """Layers that keep what their way back needs."""
        self.replay: Replay | None = None
        self._beside = 0

    @property
    def bytes(self) -> int:
        """What a run of the linked programs holds beside weights and gradients."""
        assert self.replay is not None
        return self.replay.size + self._beside

    def link(self, keep_bytes: float, room: Callable[[], float]) -> None:
        """Link the programs of all layers. ``keep_bytes`` is how much layers may keep from the forward pass for the
        backward pass, as far as there is room; the others are computed again. Raises InputError where nothing kept is
        still too much."""
        replay = self._linked(keep_bytes)
        if replay.size > (free := room()):
            replay = self._linked(0.0)
            if replay.size > free:
                raise too_large(replay.size, free)
            if keep_bytes:
                replay = self._linked(min(keep_bytes, free - replay.size))
        self.replay = replay

    def _linked(self, keep_bytes: float) -> Replay:
        linking = Linking(self.plan, self.programs, self.put.tensors, self.loss, keep_bytes, self.clear)
        self.reached, self.kept_layers, self._beside = linking.reached, sum(linking.kept), linking.beside
        return Replay(linking.calls, linking.own, self.programs.arena)

    def stale(self) -> bool:
        """Whether weights lie elsewhere than when this was linked."""
        return moved(self.bound) or any(place.matrix is not matrix for place, matrix in self.matrices)

    def __call__(self, arrays: Mapping[str, np.ndarray | Tensor], scale: float) -> None:
        """Run a batch: ``loss`` is its summed cross entropy times ``scale``, gradients are written or added."""
        for name, array in arrays.items():
            if isinstance(array, Tensor):
                self.put.tensors[name].assign(array).realize()
            else:
                self.put.put(name, array)
        self.put.put("scale", np.array([scale], np.float32))
        assert self.replay is not None
        self.replay()


def too_large(needed: float, room: float) -> InputError:
    """The error of a pass that does not fit."""
    return InputError(f"a training step of this shape needs {human_bytes(int(needed))} of memory beside weights, "
                      f"gradients and optimizer state, and {human_bytes(max(int(room), 0))} may be used; use shorter "
                      f"rows (--max-length), fewer at once (--batch-size) or a larger --max-memory")
