"""Products of a vector with rows of weights: several threads to a row, several rows to a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from tinygrad import Tensor, UOp, dtypes

from gemma4_core.weights import ExpertStack, Matrix
from gemma4_plugins.devices.stored_weights import stored
from gemma4_plugins.devices.uops.packing import PACKINGS, Packing, vector_of
from gemma4_plugins.devices.uops.writing import Kernel, bounded, combined

THREADS = 256
"""Threads of a group; half as many where there would be too few groups."""
LANES = 32
"""Threads that share a row where it is long enough: neighbours read neighbouring vectors."""
MOST_ROWS = 8
"""The most rows per thread."""
ENOUGH_GROUPS = 256
"""Thread groups that fill a large GPU; with more rows than that a thread takes several, and reuses what it loaded of
the vector for all of them."""
LOADS = 8
"""Vectors of weights that a thread loads before it uses the first."""


@dataclass(frozen=True)
class Layout:
    """Where the numbers of an operand are stored: planes of four neighbours, so that threads that read neighbouring
    vectors of weights also read neighbouring numbers."""

    size: int
    vector: int
    """Numbers in one vector of weights."""

    @property
    def planes(self) -> int:
        return max(self.vector // 4, 1)

    def place(self, index: UOp) -> UOp:
        """The position of number ``index``."""
        if self.planes == 1:
            return index
        plane = index % self.vector // 4
        return plane * (self.size // self.planes) + index // self.vector * 4 + index % 4

    def numbers(self, memory: UOp, chunk: UOp, first: UOp | int = 0) -> list[UOp]:
        """The numbers to multiply with vector ``chunk`` of a row, of an operand that begins at number ``first``."""
        if self.planes == 1:
            return [memory[first + chunk * self.vector + i] for i in range(self.vector)]
        plane = self.size // self.planes
        return [memory[first + p * plane + chunk * 4 + i] for p in range(self.planes) for i in range(4)]


@dataclass(frozen=True)
class Stored:
    """A matrix or a stack of them as it is stored in memory: rows of words, with row scales for int8."""

    tensor: Tensor
    scale: Tensor | None
    packing: Packing
    rows: int
    columns: int

    @property
    def words(self) -> int:
        """Words per row."""
        return self.columns // self.packing.count

    @property
    def vector(self) -> int:
        """Words per load."""
        return vector_of(self.words)

    @property
    def layout(self) -> Layout:
        """The layout of an operand of this matrix."""
        return Layout(self.columns, self.vector * self.packing.count)


def stored_rows(matrix: Matrix | ExpertStack | None) -> Stored | None:
    """A matrix as kernels read it in place; None for an unknown kind, and where rows are not whole words."""
    parts = stored(matrix)
    packing = PACKINGS.get(parts[""].dtype) if parts else None
    if matrix is None or packing is None or (packing.pack is None and "_scale" not in parts):
        return None
    *above, rows, columns = matrix.shape
    if columns % packing.count:
        return None
    return Stored(parts[""], parts.get("_scale"), packing, rows * (above[0] if above else 1), columns)


class Source(Protocol):
    """Rows of weights in a kernel, by their numbers in the result."""

    shape: Stored

    def word(self, row: UOp, index: UOp) -> UOp:
        """Word ``index`` of a row."""
        ...

    def scale(self, row: UOp) -> UOp | None:
        """The factor of a row's sum."""
        ...


class Rows:
    """Rows of one matrix or stack; ``at`` maps a row of the result to its row there."""

    def __init__(self, kernel: Kernel, shape: Stored, at: Callable[[UOp], UOp] = lambda row: row) -> None:
        self.shape, self.at = shape, at
        self.memory = kernel.read(shape.tensor, shape.packing.word)
        self.scales = None if shape.scale is None else kernel.read(shape.scale)

    def moved(self, at: Callable[[UOp], UOp]) -> Rows:
        """Other rows of the same matrix."""
        other = copy(self)
        other.at = at
        return other

    def word(self, row: UOp, index: UOp) -> UOp:
        return self.memory[self.at(row) * self.shape.words + index]

    def scale(self, row: UOp) -> UOp | None:
        return None if self.scales is None else self.scales[self.at(row)]


class StackedRows:
    """The rows of several matrices, concatenated; each row is loaded from its own matrix."""

    def __init__(self, kernel: Kernel, matrices: Sequence[Stored]) -> None:
        self.shape = matrices[0]
        self.parts = [Rows(kernel, matrix) for matrix in matrices]
        self.first = [sum(m.rows for m in matrices[:i]) for i in range(len(matrices))]

    def found(self, row: UOp, load: Callable[[Rows, UOp, UOp], UOp]) -> UOp:
        """What is loaded for a row: the sum over all matrices, of which only the row's own is not zero."""
        ends = [first + part.shape.rows for first, part in zip(self.first, self.parts, strict=True)]
        return combined([
            load(part, row - first, (row >= first) & (row < end))
            for part, first, end in zip(self.parts, self.first, ends, strict=True)
        ])  # fmt: skip

    def word(self, row: UOp, index: UOp) -> UOp:
        words = self.shape.words
        return self.found(row, lambda part, own, inside: part.memory[(own * words + index).valid(inside)])

    def scale(self, row: UOp) -> UOp | None:
        if self.shape.scale is None:
            return None
        return self.found(row, lambda part, own, inside: scales_of(part)[own.valid(inside)])


def scales_of(rows: Rows) -> UOp:
    """The row scales of int8 weights."""
    assert rows.scales is not None
    return rows.scales


@dataclass(frozen=True)
class RowLayout:
    """How the rows of a product are distributed over the threads of a kernel."""

    count: int
    """Rows in total."""
    lanes: int
    """Threads per row."""
    sets: int
    """Rows that a group works on at the same time."""
    rows: int
    """Rows per thread, one after the other."""

    @staticmethod
    def of(count: int, chunks: int, sources: int = 1) -> RowLayout:
        """For ``count`` rows of this many vectors each, in this many matrices side by side."""
        lanes = next((n for n in (LANES, LANES // 2) if chunks % n == 0), LANES)
        while lanes > 1 and lanes > chunks:
            lanes //= 2
        threads = THREADS if count * lanes >= THREADS * ENOUGH_GROUPS else THREADS // 2
        sets = threads // lanes
        rows = 1
        while rows < min(MOST_ROWS // sources, lanes) and count >= 2 * rows * sets * ENOUGH_GROUPS:
            rows *= 2
        return RowLayout(count, lanes, sets, rows)

    @property
    def threads(self) -> int:
        return self.lanes * self.sets

    @property
    def together(self) -> int:
        """Rows per thread group."""
        return self.sets * self.rows

    @property
    def groups(self) -> int:
        return -(-self.count // self.together)


class Product:
    """Products of one vector with rows of several sources, which have equally many rows of the same length."""

    def __init__(self, kernel: Kernel, cut: RowLayout) -> None:
        self.kernel, self.cut = kernel, cut
        self.lane, self.set = kernel.thread % cut.lanes, kernel.thread // cut.lanes
        first = kernel.group * cut.together + self.set * cut.rows
        self.rows = [bounded(first + r, cut.count, cut.groups * cut.together) for r in range(cut.rows)]
        """This thread's rows."""

    def partial(self, sources: Sequence[Source], operand: Callable[[UOp], list[UOp]]) -> list[list[UOp]]:
        """This thread's part of each row's sum, source by source. ``operand(chunk)`` are the numbers to multiply with
        vector ``chunk`` of a row."""
        shape, cut = sources[0].shape, self.cut
        chunks, vector = shape.words // shape.vector, shape.vector
        steps = -(-chunks // cut.lanes)
        most = max(LOADS // (len(self.rows) * len(sources)), 1)
        wide = next(n for n in range(min(steps, most), 0, -1) if steps % n == 0)

        def terms(step: UOp) -> list[UOp]:
            found: list[list[UOp]] = [[] for _ in range(len(sources) * len(self.rows))]
            for i in range(wide):
                chunk = (step * wide + i) * cut.lanes + self.lane
                inside = None if steps * cut.lanes == chunks else chunk < chunks
                at = chunk if inside is None else inside.where(chunk, 0)
                x = operand(at)
                for n, (source, row) in enumerate(product(sources, self.rows)):
                    words = [source.word(row, at * vector + w) for w in range(vector)]
                    numbers = [number for word in words for number in shape.packing.unpack(word)]
                    total = combined([a * b for a, b in zip(numbers, x, strict=True)])
                    found[n].append(total if inside is None else inside.where(total, 0.0))
            return [combined(one) for one in found]

        sums = self.kernel.sum_over(steps // wide, terms)
        return [sums[i : i + cut.rows] for i in range(0, len(sums), cut.rows)]

    def finished(self, partial: Sequence[Sequence[UOp]]) -> tuple[UOp, UOp, list[UOp]]:
        """Add up the parts of each row's threads. Returns a row of the group, the condition under which this thread
        writes it, and the row's sums."""
        kernel, cut = self.kernel, self.cut
        stride = cut.lanes + 1  # so that rows begin in different banks
        size = cut.together * stride
        parts = kernel.shared(len(partial) * size)
        at = [(self.set * cut.rows + r) * stride + self.lane for r in range(cut.rows)]
        values = [(s * size + at[r], value) for s, one in enumerate(partial) for r, value in enumerate(one)]
        parts = parts.after(UOp.group(*(parts[place].store(value) for place, value in values)))
        own = kernel.thread % cut.together
        sums = [combined([parts[s * size + own * stride + i] for i in range(cut.lanes)]) for s in range(len(partial))]
        row = kernel.group * cut.together + own
        end = cut.groups * cut.together
        mine = (kernel.thread < cut.together) & (row < cut.count)  # simplified where either always holds
        return bounded(row, cut.count, end), mine, sums

    def sums(self, sources: Sequence[Source], operand: Callable[[UOp], list[UOp]]) -> tuple[UOp, UOp, list[UOp]]:
        """Scaled sums of each source's rows, as :meth:`finished` gives them."""
        row, mine, sums = self.finished(self.partial(sources, operand))
        scales = [source.scale(row) for source in sources]
        return row, mine, [t if s is None else t * s for t, s in zip(sums, scales, strict=True)]


def plain_product(operand: Tensor, matrix: Stored, name: str = "product") -> Tensor:
    """``matrix @ operand`` fp32 ``[rows]``; the operand is fp32 and stored in the matrix's layout."""
    cut = RowLayout.of(matrix.rows, matrix.words // matrix.vector)
    k = Kernel(f"{name}_{matrix.packing.name}_{matrix.rows}_{matrix.columns}", cut.groups, cut.threads)
    x = k.read(operand)
    out = k.write(Tensor.empty(matrix.rows, dtype=dtypes.float32, device=operand.device))
    row, mine, (total,) = Product(k, cut).sums([Rows(k, matrix)], lambda chunk: matrix.layout.numbers(x, chunk))
    return k.run(out[row.valid(mine)].store(total))[0]
