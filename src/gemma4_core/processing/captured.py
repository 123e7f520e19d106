"""Running a tower fast: one captured graph per input shape, and soft tokens kept by content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, TinyJit

from gemma4_core.processing.kept import Kept

GRAPHS = 8
"""Captured graphs held per tower; each holds its scratch memory."""
TOKEN_ENTRIES, TOKEN_BYTES = 64, 256 << 20
"""Bounds of the soft tokens that a tower keeps."""


def upload(array: np.ndarray, device: str) -> Tensor:
    """A realized tensor on a device."""
    return Tensor(np.ascontiguousarray(array), device=device).contiguous().realize()


class Captured:
    """A function of tensors that is captured once per shape of its inputs.

    ``weights`` gives the tensors that the function reads besides its arguments; where one of them has another buffer
    than at capture (an adapter, a trained matrix put in its place), everything captured is dropped. Values written
    into the same buffer are seen without that, but tokens kept by content are not: call ``forget``.
    """

    def __init__(
        self, function: Callable[..., Tensor], weights: Callable[[], Mapping[str, Tensor]], device: str
    ) -> None:
        self.function, self.weights, self.device = function, weights, device
        self.graphs: Kept[TinyJit] = Kept(GRAPHS, 1 << 62, lambda graph: 0)
        self.tokens: Kept[Tensor] = Kept(TOKEN_ENTRIES, TOKEN_BYTES, lambda tokens: int(tokens.nbytes()))
        self._buffers: tuple[Any, ...] = ()

    def __call__(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """The function's value for these inputs, in a buffer of its own."""
        self._check_weights()
        key = tuple((array.shape, array.dtype.str) for array in arrays)
        return self.graphs.get(key, self._graph)(*(upload(array, self.device) for array in arrays)).clone().realize()

    def kept(self, key: bytes, make: Callable[[], Tensor]) -> Tensor:
        """Soft tokens by content hash."""
        self._check_weights()
        return self.tokens.get(key, make)

    def forget(self) -> None:
        """Drop graphs and tokens."""
        self.graphs.clear()
        self.tokens.clear()

    def _graph(self) -> TinyJit:
        graph = TinyJit(lambda *inputs: self.function(*inputs).contiguous().realize())
        # weights and inputs are realized, so the trial call that TinyJit makes before capturing is not needed
        graph.cnt = 1
        return graph

    def _check_weights(self) -> None:
        buffers = tuple(tensor.uop for tensor in self.weights().values())
        if len(buffers) != len(self._buffers) or any(a is not b for a, b in zip(buffers, self._buffers, strict=True)):
            self.forget()
            self._buffers = buffers
