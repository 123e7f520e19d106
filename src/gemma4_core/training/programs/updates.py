"""The update of all parameters: the gradients' global norm and the optimizer's rule, a program per kind of tensor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from tinygrad import Tensor, UOp, dtypes
from tinygrad.device import Buffer
from tinygrad.helpers import Context as TinygradContext

from gemma4_core.engine.inputs import GraphInputs
from gemma4_core.plugins import registry
from gemma4_core.plugins.packages import package_state
from gemma4_core.training.gradients import PARTS, partial_squares
from gemma4_core.training.programs.compiling import Form, Programs, Task
from gemma4_core.training.programs.kinds import UNKNOWN
from gemma4_core.training.programs.running import Replay, moved, view
from gemma4_core.training.programs.stages import Outputs


class Update:
    """One step of an optimizer whose rule is told for each tensor: it has ``schedule_step`` and ``kind``."""

    def __init__(
        self, optimizer: Any, parameters: Mapping[str, Tensor], programs: Programs, gradients: Mapping[str, Tensor],
        limited: bool,
    ) -> None:  # fmt: skip
        """``gradients`` are realized tensors by the parameter's name; ``limited`` says whether their norm is."""
        self.optimizer, self.parameters, self.programs = optimizer, parameters, programs
        self.gradients, self.limited = dict(gradients), limited
        self.put = GraphInputs(programs.device)
        self.own: set[UOp] = set()
        self.norm = Tensor.zeros(1, dtype=dtypes.float32, device=programs.device).contiguous().realize()
        self.factor = Tensor.zeros(1, dtype=dtypes.float32, device=programs.device).contiguous().realize()
        calls = [*(self._limit() if limited else []), *self._steps()]
        named = [parameters[name] for name in gradients] + list(optimizer.state_dict().values())
        self.bound = [(tensor, tensor.uop.base) for tensor in named]
        self.replay = Replay(calls, self.own, programs.arena)

    def __call__(self, max_norm: float | None) -> Tensor | None:
        """Take the step; the norm of the gradients before it was limited, where it is."""
        if self.limited:
            self.put.put("limit", np.array([max_norm], np.float32))
        self.replay()
        return self.norm if self.limited else None

    def stale(self) -> bool:
        """Whether parameters or state lie elsewhere than when this was linked."""
        return moved(self.bound)

    def _limit(self) -> list[UOp]:
        """The global norm, and what gradients are multiplied with."""
        device, count = self.programs.device, len(self.gradients)
        parts = Buffer(device, count * PARTS, dtypes.float32)
        keys = {name: ("squares", int(g.numel()), g.dtype) for name, g in self.gradients.items()}
        tasks: dict[Hashable, Task] = {
            key: Task(lambda: squares, {"gradient": ((key[1],), key[2])}, {}) for key in keys.values()
        }
        last: Hashable = ("norm", count)
        forms: dict[str, Form] = {"parts": ((count * PARTS,), dtypes.float32), "limit": ((1,), dtypes.float32)}
        tasks[last] = Task(lambda: norm, forms, {})
        self.programs.add(tasks)
        calls: list[UOp] = []
        for index, (name, gradient) in enumerate(self.gradients.items()):
            bound = {"gradient": gradient.uop.base, "parts": view(parts, index * PARTS * 4, PARTS, dtypes.float32)}
            calls += self._use(keys[name], bound)
        limit = self.put.put("limit", np.array([1.0], np.float32))
        bound = {"parts": UOp.from_buffer(parts), "limit": limit.uop.base, "norm": self.norm.uop.base,
                 "factor": self.factor.uop.base}
        return calls + self._use(last, bound)

    def _steps(self) -> list[UOp]:
        inner, every = self.optimizer, self.optimizer.state_dict()
        made_by, keys = code_of(inner), dict[str, Hashable]()
        roles: dict[str, dict[str, Tensor]] = {}
        tasks: dict[Hashable, Task] = {}
        for name, gradient in self.gradients.items():
            parameter = self.parameters[name]
            held = {key.removesuffix(f".{name}"): t for key, t in every.items() if key.endswith(f".{name}")}
            roles[name] = {"parameter": parameter, "lr": every["lr"]} | held
            shapes = tuple((role, tuple(t.shape), t.dtype) for role, t in roles[name].items())
            form = tuple(gradient.shape), gradient.dtype
            key: Hashable = ("update", made_by, inner.kind(name), shapes, form, self.limited)
            keys[name] = key
            inputs = {"gradient": form} | ({"factor": ((1,), dtypes.float32)} if self.limited else {})
            tasks.setdefault(key, Task(lambda name=name: self._rule(name), inputs, roles[name]))  # type: ignore[misc]
        # tinygrad makes what reads more than three buffers in one of its own and copies it, unless its fusing goes on
        with TinygradContext(PCONTIG=3 if getattr(inner, "elementwise", False) else 0):
            self.programs.add(tasks)
        calls: list[UOp] = []
        for name, gradient in self.gradients.items():
            bound = {role: tensor.uop.base for role, tensor in roles[name].items()}
            calls += self._use(keys[name], bound | {"gradient": gradient.uop.base, "factor": self.factor.uop.base})
        return calls

    def _rule(self, name: str) -> Any:
        """The optimizer's step for one parameter alone."""

        def run(**given: Tensor) -> Outputs:
            gradient, factor = given["gradient"], given.get("factor")
            parameter, inner = self.parameters[name], self.optimizer
            inner.zero_grad()
            parameter.grad = gradient if factor is None else (gradient * factor.reshape(())).cast(gradient.dtype)
            changed = inner.schedule_step()
            inner.zero_grad()
            return {f"changed {number}": tensor for number, tensor in enumerate(changed)}

        return run

    def _use(self, key: Hashable, bound: Mapping[str, UOp]) -> list[UOp]:
        places: dict[UOp, UOp] = {}
        calls = self.programs.done[key].bound(bound, places)
        self.own.update(places.values())
        return calls


def code_of(optimizer: Any) -> Hashable:
    """The state of the packages that an optimizer's class comes from."""
    packages = {kind.__module__.split(".")[0] for kind in type(optimizer).__mro__} - {"builtins", "abc"}
    plugins = registry.manager.plugins()
    states = [package_state(package, plugins) for package in sorted(packages)]
    return (UNKNOWN, type(optimizer)) if None in states else tuple(map(repr, states))


def squares(**given: Tensor) -> Outputs:
    """Sums of squares of pieces of a tensor: fp32 ``[PARTS]``."""
    return {"parts": partial_squares(given["gradient"])}


def norm(**given: Tensor) -> Outputs:
    """The root of the sum of all squares, and what brings it down to the limit."""
    # [n * PARTS] -> [n, PARTS] -> [PARTS] -> []
    found = given["parts"].reshape(-1, PARTS).sum(0).contiguous().sum().sqrt().reshape(1).contiguous()
    return {"norm": found, "factor": (given["limit"] / found.maximum(1e-12)).minimum(1.0)}

