"""The programs of one shape put together for all layers: which buffers each of their uses reads and writes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import prod

from tinygrad import Tensor, UOp, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import DType

from gemma4_core.config import LayerConfig
from gemma4_core.model.differentiable import rotation_table
from gemma4_core.training.programs.compiling import Programs, Task
from gemma4_core.training.programs.plan import Plan
from gemma4_core.training.programs.running import view
from gemma4_core.training.programs.stages import Backward, Outputs, gradient_of, sum_of

FORWARD = frozenset({"h out", "k out", "v out", "ple out", "loss"})
"""Outputs of the way forward."""

Bound = dict[str, UOp]
"""Buffers by the name that a program knows them by."""


class Linking:
    """The calls of a step in order. ``own`` are the buffers that nobody outside knows."""

    def __init__(
        self, plan: Plan, programs: Programs, inputs: Mapping[str, Tensor], loss: Tensor, keep_bytes: float, clear: bool
    ) -> None:
        """``keep_bytes`` is how much layers may keep from the way forward for the way back; the others are computed
        again. With ``clear`` sums of gradients begin at zero."""
        self.plan, self.programs, self.loss, self.left = plan, programs, loss, keep_bytes
        self.layers, self.device = plan.config.layers, programs.device
        self.given = {name: tensor.uop.base for name, tensor in inputs.items()}
        self.own: set[UOp] = set()
        self.beside = 0
        """Bytes that the step holds beside its planned memory."""
        self.reached: dict[int, Tensor] = {}
        """Where the gradients of the parameters lie that the loss depends on."""
        self.kept: list[bool] = []
        """Whether each layer keeps what its way back needs."""
        self.trains = bool(plan.trained.parameters)
        self.count = plan.batch * plan.length
        self.last, self.back = self.whole(*plan.rows), self.whole(*plan.rows)
        self.ple = self.whole(*plan.ple_form(len(self.layers))) if plan.per_layer else None
        self.dple = self.whole(*plan.ple_form(len(self.layers))) if plan.per_layer and plan.start_back else None
        self.shared: dict[int, Bound] = {}
        """Keys and values of layers that later ones share, and the sums of their gradients, by the layer's index."""
        self.bounds: list[Bound] = []
        self.places: list[dict[UOp, UOp]] = []
        self.start: Bound = {}
        calls = self._forward() + self._head()
        calls += self._backward() if self.trains else []
        sums = [t for i, t in self.reached.items() if clear and i in plan.trained.added]
        self.calls = [call for t in (loss, *sums) for call in self.cleared(t.uop.base)] + calls

    # ------------------------------------------------------------------------------------------- memory

    def buffer(self, shape: tuple[int, ...], dtype: DType) -> UOp:
        """Memory of the step's own, planned over the whole of it."""
        made = UOp.new_buffer(self.device, prod(shape), dtype)
        self.own.add(made)
        return made

    def whole(self, shape: tuple[int, ...], dtype: DType) -> Buffer:
        """Memory that parts are taken of; it is not planned."""
        made = Buffer(self.device, prod(shape), dtype)
        self.beside += made.nbytes
        return made

    @staticmethod
    def part(buffer: Buffer, index: int, size: int) -> UOp:
        return view(buffer, index * size * buffer.dtype.itemsize, size, buffer.dtype)

    # ------------------------------------------------------------------------------------------- uses of programs

    def use(self, key: Hashable, bound: Bound, places: dict[UOp, UOp], wanted: set[int]) -> list[UOp]:
        """The calls ``wanted`` of a program over these buffers; ``places`` are its own ones of this use."""
        calls = self.programs.done[key].bound(bound, places, wanted)
        self.own.update(places.values())
        return calls

    def needed(self, key: Hashable, back: Backward | None) -> tuple[set[int], set[int]]:
        """The calls of a program that the way forward needs, and those that the way back needs."""
        program = self.programs.done[key]
        return program.needed(FORWARD), set() if back is None else program.needed(back.outputs)

    def weights(self, key: Hashable, weights: Mapping[str, Tensor], back: Backward | None) -> Bound:
        """The weights of a use of a program, and where their gradients go."""
        bound = {name: tensor.uop.base for name, tensor in weights.items()}
        known = set(self.programs.done[key].names.values())
        for name in back.trained if back is not None else ():
            output = sum_of(name) if back is not None and name in back.added else gradient_of(name)
            if output in known and self.plan.trained.target is not None:
                parameter = id(weights[name])
                self.reached[parameter] = self.plan.trained.target(parameter)
                bound[output] = self.reached[parameter].uop.base
        return bound

    def cleared(self, buffer: UOp) -> list[UOp]:
        """Calls that fill a buffer of fp32 numbers with zeros."""
        size = buffer.max_numel()
        key = ("clear", size)
        self.programs.add({key: Task(lambda: zeros, {"sums": ((size,), dtypes.float32)}, {})})
        return self.programs.done[key].bound({"sums": buffer}, {})

    # ------------------------------------------------------------------------------------------- the way forward

    def _forward(self) -> list[UOp]:
        plan = self.plan
        h = [*(self.buffer(*plan.rows) for _ in self.layers), UOp.from_buffer(self.last)]
        self.start = self.given | self.weights(plan.start_key, plan.start_weights, plan.start_back) | {"h out": h[0]}
        if self.ple is not None:
            self.start["ple out"] = UOp.from_buffer(self.ple)
        calls = self.use(plan.start_key, self.start, {}, self.needed(plan.start_key, None)[0])
        table = rotation_table(plan.model, plan.length)
        for layer, key in zip(self.layers, plan.layer_keys, strict=True):
            index, back = layer.index, plan.layer_backs[layer.index]
            bound = self.given | self.weights(key, plan.walks[index].tensors, back) | self._keys_values(layer)
            bound |= {name: self._angles(t) for name, t in zip(("cos", "sin"), table.of(layer), strict=True)}
            bound |= {"h": h[index], "h out": h[index + 1]}
            if self.ple is not None:
                bound["ple"] = self.part(self.ple, index, self.count * plan.per_layer)
            places: dict[UOp, UOp] = {}
            calls += self.use(key, bound, places, self.needed(key, back)[0])
            self.bounds.append(bound)
            self.kept.append(self._keeps(key, back))
            self.places.append(places if self.kept[-1] else {})
        return calls

    def _keys_values(self, layer: LayerConfig) -> Bound:
        """The keys and values that a layer shares or that others will share, with the sums of their gradients."""
        if layer.donor is not None:
            return self.shared[layer.donor]
        if layer.index not in self.plan.donors:
            return {}
        shape = self.plan.kv_shape(layer)
        held = {name: self.buffer(shape, self.plan.model.dtype) for name in "kv"}
        sums = {sum_of(name): self.buffer(shape, dtypes.float32) for name in "kv"}
        self.shared[layer.index] = held | sums
        return {f"{name} out": buffer for name, buffer in held.items()} | sums

    def _angles(self, table: Tensor) -> UOp:
        """The rotary angles of the step's positions."""
        return view(table.uop.base.buffer, 0, self.plan.length * int(table.shape[1]), table.dtype)

    def _keeps(self, key: Hashable, back: Backward | None) -> bool:
        """Whether a layer keeps what it makes on the way forward and reads on the way back: where there is room."""
        program = self.programs.done[key]
        forward, backward = self.needed(key, back)
        made = {buffer for i in forward for buffer in program.calls[i].src[1:] if buffer in program.own}
        read = {buffer for i in backward - forward for buffer in program.calls[i].src[1:]}
        cost = sum(buffer.max_numel() * buffer.dtype.itemsize for buffer in made & read)
        if back is None or cost > self.left:
            return False
        self.left -= cost
        return True

    def _head(self) -> list[UOp]:
        """The head's loss, and the gradient of the last layer's output, some rows at a time."""
        plan, calls = self.plan, list[UOp]()
        rows, size = plan.head_rows, plan.head_rows * plan.config.hidden_size
        targets = self.given["targets"].buffer
        assert isinstance(targets, Buffer)
        forward, backward = self.needed(plan.head_key, plan.head_back)
        for number in range(self.count // rows):
            bound = self.weights(plan.head_key, plan.head_walk.tensors, plan.head_back)
            bound |= {"scale": self.given["scale"], "loss": self.loss.uop.base}
            bound |= {"h": self.part(self.last, number, size), gradient_of("h"): self.part(self.back, number, size)}
            bound |= {"targets": self.part(targets, number, rows)}
            calls += self.use(plan.head_key, bound, {}, forward | backward)
        return calls

    # ------------------------------------------------------------------------------------------- the way back

    def _backward(self) -> list[UOp]:
        plan = self.plan
        sums = [held[sum_of(name)] for held in self.shared.values() for name in "kv"]
        calls = [call for buffer in sums for call in self.cleared(buffer)]
        turn = UOp.from_buffer(self.back)
        for layer in reversed(self.layers):
            index, key, back = layer.index, plan.layer_keys[layer.index], plan.layer_backs[layer.index]
            if back is None:
                break
            bound = self.bounds[index] | {"dh": turn, gradient_of("h"): self.buffer(*plan.rows)}
            if self.dple is not None:
                bound[gradient_of("ple")] = self.part(self.dple, index, self.count * plan.per_layer)
            forward, backward = self.needed(key, back)
            calls += self.use(key, bound, self.places[index], backward - forward if self.kept[index] else backward)
            turn = bound[gradient_of("h")]
        if plan.start_back is not None:
            bound = self.start | {"dh": turn}
            if self.dple is not None:
                bound["dple"] = UOp.from_buffer(self.dple)
            calls += self.use(plan.start_key, bound, {}, self.needed(plan.start_key, plan.start_back)[1])
        return calls


def zeros(**given: Tensor) -> Outputs:
    return {"sums": given["sums"].assign(given["sums"].zeros_like())}


