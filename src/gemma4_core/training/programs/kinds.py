"""Which layers run the same programs: those that differ in nothing but the content of their tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from types import FunctionType
from typing import Any

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.config import LayerConfig, TextConfig
from gemma4_core.ops.dropout import Dropout
from gemma4_core.weights import ExpertStack, Matrix, Weight

UNKNOWN = "known by its place in memory"
"""Begins a description that means nothing in another process."""


class Walk:
    """The tensors inside an object by the path of attributes that leads there, and a description of all else."""

    def __init__(self, value: Any) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.drops = False
        """Whether it drops numbers while it trains."""
        self._seen: dict[int, tuple[str, Any]] = {}
        """Where a value was met first, by its ``id``; the value with it, so that no later one is given that number."""
        self.form: Hashable = self._form(value, "")
        """Equal for two objects that compute the same from tensors of the same paths."""
        self._seen.clear()

    def _form(self, value: Any, path: str) -> Hashable:
        if value is None or isinstance(value, (bool, int, float, str, bytes, DType, Enum)):
            return type(value).__name__, value
        if isinstance(value, LayerConfig):
            # its number, and which layer's keys it shares, are no matter of its programs
            return replace(value, index=0, donor=None if value.donor is None else 0)
        if isinstance(value, TextConfig):
            return "config", repr(value)
        if id(value) in self._seen:
            return "again", self._seen[id(value)][0]
        self._seen[id(value)] = path, value
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, Mapping):
            return "mapping", tuple((key, self._form(one, f"{path}.{key}")) for key, one in value.items())
        if isinstance(value, Sequence):
            return type(value).__name__, tuple(self._form(one, f"{path}.{i}") for i, one in enumerate(value))
        if isinstance(value, FunctionType) and not value.__closure__:
            return "function", value
        if isinstance(value, type):
            return "type", value
        return self._object(value, path)

    def _tensor(self, tensor: Tensor, path: str) -> Hashable:
        self.tensors[path] = tensor
        base = tensor.uop.base
        whole = base.is_realized and base.max_numel() == tensor.numel() and base.dtype == tensor.dtype
        # a view of a part of a buffer is bound by nothing but itself
        place = None if whole else (UNKNOWN, tensor.uop)
        return "tensor", tuple(int(n) for n in tensor.shape), tensor.dtype, str(tensor.device), place

    def _object(self, value: Any, path: str) -> Hashable:
        self.drops = self.drops or isinstance(value, Dropout)
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})
        if isinstance(value, (Matrix, ExpertStack)):
            held["parts"] = dict(value.parts())  # some are known to its methods alone
        if not held:
            return UNKNOWN, type(value), id(value)
        if isinstance(value, Weight):
            del held["name"]
        return type(value), tuple((name, self._form(one, f"{path}.{name}")) for name, one in sorted(held.items()))
