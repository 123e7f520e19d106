"""Training steps over programs: which pass a batch takes, where gradients lie, and how much memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import _from_np_dtype
from tinygrad.helpers import GlobalCounters

from gemma4_core.devices import free_memory_bytes
from gemma4_core.model.model import GemmaModel
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.programs.compiling import Form, Programs
from gemma4_core.training.programs.kinds import Walk
from gemma4_core.training.programs.passes import Pass
from gemma4_core.training.programs.plan import Trained
from gemma4_core.training.programs.running import views

KEPT = 0.75
"""The part of the weights' bytes that layers may keep for the way back where no memory limit is given."""
SHARE = 0.9
"""The part of free memory that a pass may fill."""

class Steps:
    """The passes of a model over batches, with gradients of ``parameters`` where there are any."""

    def __init__(self, model: GemmaModel, parameters: Mapping[str, Tensor]) -> None:
        self.model, self.parameters = model, dict(parameters)
        self.programs = Programs(str(model.device), model.operations)
        self.passes: dict[Hashable, Pass] = {}
        """By the shapes of their batch and how they treat gradients."""
        self.memory_limit: int | None = None
        """Bytes of device memory that may be in use; None is all that is free."""
        self._names = {id(tensor): name for name, tensor in self.parameters.items()}
        self._held: dict[tuple[str, bool], Tensor] = {}
        self._matrices: list[Any] = []
        self._known = False
        """Whether all that trains is where programs look, for the matrices above."""
        text = model.text
        self._shared = {id(t) for t in Walk((text.embedding, text.norm)).tensors.values()}
        """Tensors with several gradients in one pass: of the head's pieces, and of embedded ids."""

    def serve(self, batches: Sequence[CheckedBatch]) -> bool:
        """Whether programs can run these batches: towers that do not arrange their media run outside of them, and what
        trains must be a tensor of the model, its towers or their matrices."""
        if not views(self.programs.device) or not all(batch.arranged for batch in batches):
            return False
        matrices = [place.matrix for place in self.model.places.values()]
        if matrices != self._matrices:
            text = self.model.text
            walk = Walk((text.layers, text.embedding, text.norm, text.ple_table, self.model.towers))
            known = {id(t) for t in (*walk.tensors.values(), *self.model.named_tensors().values())}
            self._matrices, self._known = matrices, self._names.keys() <= known
        return self._known

    def run(
        self, batches: Sequence[CheckedBatch], checkpointing: bool = False, begin: Callable[[int], None] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over all targets of the batches, a detached fp32 scalar, and gradients by parameter, each in
        memory that the next call overwrites. ``begin`` is told the number of each batch before it runs. Raises
        InputError where memory does not suffice."""
        targets = sum(batch.count for batch in batches)
        several = len(batches) > 1
        passes = [self.pass_of(batch, several, checkpointing) for batch in batches]
        if several:
            self._clear({i: t for one in passes for i, t in one.reached.items()})
        total: Tensor | None = None
        for number, (one, batch) in enumerate(zip(passes, batches, strict=True)):
            if begin is not None:
                begin(number)
            one(self.arrays(batch), 1 / max(targets, 1))
            loss = one.loss.clone().realize()
            total = loss if total is None else (total + loss).realize()
        assert total is not None
        reached = {i: t for one in passes for i, t in one.reached.items()}
        return total.reshape(()), {name: reached[i] for i, name in self._names.items() if i in reached}

    def pass_of(self, batch: CheckedBatch, adding: bool, checkpointing: bool) -> Pass:
        """The pass of a batch's shapes, linked anew where weights lie elsewhere since."""
        forms = self.forms(batch)
        key = tuple(forms.items()), adding, checkpointing
        found = self.passes.get(key)
        if found is None or found.stale():
            # one that is rebuilt gives back its memory first
            self.passes.pop(key, None)
            found = self.passes[key] = self._made(forms, adding, checkpointing)
        return found

    def _made(self, forms: Mapping[str, Form], adding: bool, checkpointing: bool) -> Pass:
        every = frozenset(self._names)
        added = every if adding else every & self._shared
        trained = Trained(every, added, lambda i: self.target(i, i in added))
        made = Pass(self.model, self.programs, forms, trained, not adding)
        made.link(0.0 if checkpointing else self._keep_bytes(), self.room)
        return made

    def _keep_bytes(self) -> float:
        """What layers may keep between the way forward and the way back: all that a memory limit leaves, else a part of
        what the weights take, so that other programs find memory too."""
        if self.memory_limit is not None:
            return math.inf
        return KEPT * sum(int(t.nbytes()) for t in self.model.named_tensors().values())

    @property
    def gradient_bytes(self) -> int:
        """What gradients take so far."""
        return sum(int(held.nbytes()) for held in self._held.values())

    def room(self) -> float:
        """Bytes that the arena may have."""
        device, arena = str(self.model.device), self.programs.arena
        room = SHARE * free if (free := free_memory_bytes(device)) is not None else float("inf")
        if self.memory_limit is not None:
            used = GlobalCounters.mem_used_per_device.get(device, 0)
            room = min(room, self.memory_limit - used)
        return room + arena.size

    def target(self, parameter: int, wide: bool) -> Tensor:
        """Where the gradient of a parameter goes, in its dtype or in fp32."""
        name = self._names[parameter]
        if (name, wide) not in self._held:
            own = self.parameters[name]
            dtype = dtypes.float32 if wide else own.dtype
            held = Tensor.empty(*own.shape, dtype=dtype, device=own.device)
            held.uop.base.buffer.ensure_allocated()
            self._held[name, wide] = held
        return self._held[name, wide]

    def hold(self, gradients: Mapping[str, Tensor], wide: bool) -> dict[str, Tensor]:
        """Gradients that were made elsewhere, by parameter, where those of programs lie."""
        held = {name: self.target(id(self.parameters[name]), wide) for name in gradients}
        Tensor.realize(*(held[name].assign(g.cast(held[name].dtype)) for name, g in gradients.items()))
        return held

    def _clear(self, sums: Mapping[int, Tensor]) -> None:
        Tensor.realize(*(held.assign(held.zeros_like()) for held in sums.values()))

    def forms(self, batch: CheckedBatch) -> dict[str, Form]:
        """Shapes and types of what a pass takes."""
        arrays = batch.arrays.items()
        found: dict[str, Form] = {name: (array.shape, _from_np_dtype(array.dtype)) for name, array in arrays}
        if self.model.ple_host is not None:
            text = self.model.config.text_config
            width = text.num_hidden_layers * text.hidden_size_per_layer_input
            found["ple_rows"] = (*batch.ids.shape, width), self.model.dtype
        return found

    def arrays(self, batch: CheckedBatch) -> dict[str, np.ndarray | Tensor]:
        """What a pass takes of a batch."""
        found: dict[str, np.ndarray | Tensor] = dict(batch.arrays)
        if self.model.ple_host is not None:
            ids = found["ids"]
            assert isinstance(ids, np.ndarray)
            found["ple_rows"] = self.model.ple_host.rows(ids)
        return found

