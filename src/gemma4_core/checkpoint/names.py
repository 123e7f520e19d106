"""An open checkpoint under the names of the released files, however its own files spell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.blocks import runs
from gemma4_core.checkpoint.convert import STORED, float32_values, narrow
from gemma4_core.checkpoint.shard import StoredRows
from gemma4_core.config import GemmaConfig, expected_text_tensors, is_derived, is_head, released_name
from gemma4_core.contracts import ModalityTower, TensorInfo, WeightSource
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix

COMPARING = 4
"""Threads that compare two stored copies of a tensor."""
Reader = Callable[[np.ndarray], np.ndarray]


class NamedSource:
    """A format's open folder: tensors by released name.

    Buffers that the model derives are left out. A tensor that is stored twice, such as the head ``lm_head.weight``
    beside the embedding table that it is tied to, is listed once; ``check_copies`` compares the copies.
    """

    def __init__(self, source: WeightSource, config: GemmaConfig, towers: Sequence[ModalityTower] = ()) -> None:
        self.source, self.towers = source, towers
        known = {*expected_text_tensors(config), *(name for spec in towers for name in spec.tensors(config))}
        spellings: dict[str, list[str]] = {}
        for name in source.infos:
            if name in known or not is_derived(name):
                spellings.setdefault(released_name(config, name, known), []).append(name)
        self.copies: list[tuple[str, str]] = []
        """Pairs of stored names: the one that is read, and another of the same tensor."""
        self.stored: dict[str, str] = {}
        """Name in the files by released name."""
        for name, found in spellings.items():
            # the released spelling is read first, other spellings after it, a head last
            first, *others = sorted(found, key=lambda one: (one not in known, is_head(one)))
            self.stored[name] = first
            self.copies += [(first, other) for other in others]
        self.infos: Mapping[str, TensorInfo] = {name: source.infos[stored] for name, stored in self.stored.items()}

    @property
    def renamed(self) -> dict[str, str]:
        """Name in the files by released name, where the two differ."""
        return {name: stored for name, stored in self.stored.items() if name != stored}

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """As ``WeightSource.tensor``."""
        return self.source.tensor(self.stored.get(name, name), device, dtype)

    def matrix(self, name: str, device: str, dtype: Any) -> Matrix:
        """As ``WeightSource.matrix``."""
        return self.source.matrix(self.stored.get(name, name), device, dtype)

    def stack(self, name: str, device: str, dtype: Any) -> ExpertStack:
        """As ``WeightSource.stack``."""
        return self.source.stack(self.stored.get(name, name), device, dtype)

    def row_reader(self, name: str, in_memory: bool) -> Reader:
        """As ``WeightSource.row_reader``."""
        return self.source.row_reader(self.stored.get(name, name), in_memory)

    def close(self) -> None:
        """Close the files."""
        self.source.close()

    def check_copies(self, where: str) -> None:
        """Raise CheckpointError where a tensor is stored twice with different values. Only such tensors are read."""
        for name, other in self.copies:
            row = self._difference(name, other)
            if row is None:
                continue
            place = f"{where}: {shown(other)} differs from {shown(name)}{row}"
            if is_head(other):
                raise CheckpointError(f"{place}, and an untied head is not supported: logits come from the embedding "
                                      f"table; remove {shown(other)} from the files if the table is right")
            raise CheckpointError(f"{place}, and both name the same tensor; remove one of them from the files")

    def _difference(self, name: str, other: str) -> str | None:
        """Where two stored tensors differ, for a message; None where they are equal after rounding to the coarser of
        their types."""
        one, two = self.source.infos[name], self.source.infos[other]
        if one.shape != two.shape:
            return f" in shape ({list(two.shape)}, {list(one.shape)})"
        if len(one.shape) < 2:
            pair = [self._vector(name), self._vector(other)]
            return None if unequal_row(pair[0], pair[1], one, two) is None else ""
        readers = [self.source.row_reader(stored, in_memory=False) for stored in (name, other)]

        def compare(run: tuple[int, int]) -> int | None:
            return unequal_rows(readers[0], readers[1], one, two, *run)

        with ThreadPoolExecutor(COMPARING) as pool:
            for row in pool.map(compare, runs(one.shape)):
                if row is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return f" (first in row {row})"
        return None

    def _vector(self, name: str) -> np.ndarray:
        from tinygrad import dtypes

        return self.source.tensor(name, "PYTHON", dtypes.float32).numpy().reshape(-1, 1)


def unequal_rows(
    one: Reader, two: Reader, info: TensorInfo, other: TensorInfo, first: int, count: int
) -> int | None:
    """The first of some rows in which two stored matrices differ, None where they are equal."""
    if isinstance(one, StoredRows) and isinstance(two, StoredRows) and info.dtype == other.dtype:
        # bits need no conversion; equal numbers may still differ in them (0 and -0)
        bits = one.run(first, count), two.run(first, count)
        if np.array_equal(bits[0].view(np.uint16), bits[1].view(np.uint16)):
            return None
        values = [float32_values(part, info.dtype) for part in bits]
        row = unequal_row(values[0], values[1], info, other)
    else:
        ids = np.arange(first, first + count)
        row = unequal_row(one(ids), two(ids), info, other)
    return None if row is None else first + row


def unequal_row(one: np.ndarray, two: np.ndarray, info: TensorInfo, other: TensorInfo) -> int | None:
    """The first row in which fp32 values ``[rows, ...]`` of two stored tensors differ by more than rounding to one of
    their types, or quantising one of them, explains."""
    rounded = [(one, two)]
    for a, b, dtype in ((one, two, other.dtype), (two, one, info.dtype)):
        if dtype in STORED:
            rounded.append((float32_values(narrow(a, dtype), dtype), b))
    equal = np.zeros(len(one), bool)
    for a, b in rounded:
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        equal |= same.reshape(len(one), -1).all(1)
    if info.quantized != other.quantized:
        quantized, rounding = (one, info.rounding) if info.quantized else (two, other.rounding)
        most = np.abs(quantized).max(-1, keepdims=True) * rounding
        equal |= (np.abs(one - two) <= most).reshape(len(one), -1).all(1)
    return None if equal.all() else int(np.argmin(equal))
