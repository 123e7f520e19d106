"""Captured graphs: a function of tensors that tinygrad traces and compiles once and replays afterwards.

Everything in this project that captures goes through ``CapturedGraph``, and every array that becomes a tensor of a
graph through ``upload``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tinygrad import Tensor, TinyJit, UOp
from tinygrad.dtype import DType
from tinygrad.uop import Ops

if TYPE_CHECKING:
    from tinygrad.engine.jit import CapturedJit


class GraphStore(Protocol):
    """Where captured graphs outlive the process."""

    def fetch(self, key: object) -> CapturedJit | None:
        """The graph stored under a key, None where there is none that may be used."""

    def store(self, key: object, captured: CapturedJit) -> bool:
        """Store a graph under a key; whether that was possible."""


class CapturedGraph:
    """A function that is captured by its first call and replayed by later ones.

    This is TinyJit without its first, uncaptured call, which would schedule everything twice: buffers that the function
    reads must be realized before. With a ``store`` the graph comes from there, or is stored under ``key`` once it was
    captured. Results lie in buffers that the next call overwrites.
    """

    def __init__(self, function: Callable[..., Any], store: GraphStore | None = None, key: object = None) -> None:
        self.jit = TinyJit(function)
        captured = store.fetch(key) if store is not None else None
        self.jit.captured, self.jit.cnt = captured, 1 if captured is None else 2
        self.store, self.key = store if captured is None else None, key

    def __call__(self, *args: Any) -> Any:
        result = self.jit(*args)
        if self.store is not None and self.jit.captured is not None:
            self.store.store(self.key, self.jit.captured)
            self.store = None
        return result

    @property
    def kernels(self) -> int:
        """Kernels of a replay, those within a batch that the device takes as one graph too; 0 before the first call."""
        return len(self.names)

    @property
    def names(self) -> list[str]:
        """The kernels' names, empty for those that have none, such as copies."""
        calls = self.jit.captured.linear.src if self.jit.captured is not None else ()
        single = [one for call in calls for one in (call.src[0].src[0].src if is_batch(call.src[0]) else (call,))]
        return [getattr(one.src[0].arg, "name", "") for one in single]


def is_batch(called: UOp) -> bool:
    """Whether tinygrad gathered several kernels into this call, as it does for devices that replay graphs."""
    return called.op is Ops.CUSTOM_FUNCTION and called.arg == "graph"


def upload(array: np.ndarray, device: str, dtype: DType | None = None) -> Tensor:
    """A realized tensor on a device with an array's values, converted there where ``dtype`` is given."""
    tensor = Tensor(np.ascontiguousarray(array), device=device)
    return (tensor if dtype is None else tensor.cast(dtype)).contiguous().realize()
