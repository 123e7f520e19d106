"""Running a tower fast: one captured graph per input shape, and soft tokens cached by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.checkpoint.upload import copy_in, offsets_work
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.processing.media_cache import BoundedCache, digest

GRAPHS = 8
"""Captured graphs held per tower; each holds its scratch memory."""
TOKEN_ENTRIES, TOKEN_BYTES = 64, 256 << 20
"""Bounds of the soft tokens that a tower keeps."""


def write(tensor: Tensor, array: np.ndarray) -> None:
    """Copy an array into a realized tensor's buffer: an upload as a new tensor costs milliseconds of bookkeeping. Some
    devices read the array later, so it must stay as it is until they have."""
    content = np.require(array, requirements=["C", "W"])  # tinygrad takes the address of writable memory alone
    copy_in(tensor.uop.base.buffer, 0, content, tensor.dtype)


def first_rows(tensor: Tensor, rows: int) -> Tensor:
    """A copy of the first rows of a tensor that is a whole buffer; cutting and cloning cost milliseconds."""
    if not offsets_work(str(tensor.device)):
        return tensor[:rows].clone().realize()
    made = Tensor.empty(rows, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    held = made.uop.base.buffer.ensure_allocated()
    held.copy_from(tensor.uop.base.buffer.view(held.size, held.dtype, 0).ensure_allocated())
    return made


def put_rows(tensor: Tensor, at: int, source: Tensor, rows: int) -> Tensor:
    """``tensor [n, ...]`` with its rows from ``at`` on overwritten by the first ``rows`` of ``source``. Both are whole
    buffers; no kernel is compiled for the number of rows where the device can copy parts of buffers."""
    if not offsets_work(str(tensor.device)):
        return Tensor.cat(tensor[:at], source[:rows], tensor[at + rows :]).contiguous().realize()
    target, held = (t.uop.base.buffer.ensure_allocated() for t in (tensor, source))
    size = rows * math.prod(int(n) for n in source.shape[1:])
    part = target.view(size, target.dtype, at * (size // rows) * target.dtype.itemsize).ensure_allocated()
    part.copy_from(held.view(size, held.dtype, 0).ensure_allocated())
    return tensor


class Captured:
    """A function of tensors that is captured once per shape of its inputs.

    ``weights`` gives the tensors that the function reads besides its arguments; where one of them has another buffer
    than at capture (an adapter, a trained matrix put in its place), everything captured is dropped. Values written
    into the same buffer are seen without that, but tokens cached by content are not: call ``forget``.
    """

    def __init__(
        self, function: Callable[..., Tensor], weights: Callable[[], Mapping[str, Tensor]], device: str
    ) -> None:
        self.function, self.weights, self.device = function, weights, device
        self.graphs: BoundedCache[tuple[CapturedGraph, list[Tensor]]] = BoundedCache(GRAPHS, 1 << 62, lambda graph: 0)
        """With the buffers of their inputs."""
        self.tokens: BoundedCache[Tensor] = BoundedCache(TOKEN_ENTRIES, TOKEN_BYTES, lambda t: int(t.nbytes()))
        self._buffers: tuple[Any, ...] = ()
        self._hashed: tuple[tuple[Any, ...], list[bytes]] = ((), [])

    def __call__(self, arrays: Sequence[np.ndarray], rows: int | None = None) -> Tensor:
        """The function's value for these inputs, or its first rows, in a buffer of their own."""
        self._check_weights()
        key = tuple((array.shape, array.dtype.str) for array in arrays)
        graph, inputs = self.graphs.get(key, lambda: (self._graph(), [upload(a, self.device) for a in arrays]))
        for held, array in zip(inputs, arrays, strict=True):
            write(held, array)
        made = graph(*inputs)
        return first_rows(made, int(made.shape[0]) if rows is None else rows)

    def digests(self, given: Sequence[Any], arrays: Sequence[np.ndarray]) -> list[bytes]:
        """Content hashes along the first axis of ``arrays``, as read from ``given``. The core asks for them once to
        encode and once more right after: the second time they are handed out again."""
        objects, hashes = self._hashed
        if len(given) == len(objects) and all(a is b for a, b in zip(given, objects, strict=True)):
            self._hashed = ((), [])  # once only: an array may be written to between calls
            return hashes
        hashes = [digest(*medium) for medium in zip(*arrays, strict=True)]
        self._hashed = (tuple(given), hashes)
        return hashes

    def cached(self, key: bytes, make: Callable[[], Tensor]) -> Tensor:
        """Soft tokens by content hash, made where they are not held."""
        self._check_weights()
        return self.tokens.get(key, make)

    def forget(self) -> None:
        """Drop graphs and tokens."""
        self.graphs.clear()
        self.forget_tokens()

    def forget_tokens(self) -> None:
        """Drop tokens; graphs read weights where they lie."""
        self.tokens.clear()

    def _graph(self) -> CapturedGraph:
        return CapturedGraph(lambda *inputs: self.function(*inputs).contiguous().realize())

    def _check_weights(self) -> None:
        buffers = tuple(tensor.uop for tensor in self.weights().values())
        if len(buffers) != len(self._buffers) or any(a is not b for a, b in zip(buffers, self._buffers, strict=True)):
            self.forget()
            self._buffers = buffers
