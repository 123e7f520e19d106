"""One query position's attention over the cache, in slices of positions, one for each thread group.

A slice produces its own maximum, sum and weighted values; a second kernel combines the slices. The layer's new key and
value are also made here: the first slice adds them to what it sees, and writes them into the cache for later steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tinygrad import Tensor, UOp, dtypes
from tinygrad.uop.ops import Ops

from gemma4_core.config import LayerConfig
from gemma4_plugins.devices.uops.packing import PACKINGS, Packing, vector_of
from gemma4_plugins.devices.uops.product import Layout
from gemma4_plugins.devices.uops.stream import Vector, inverse_rms
from gemma4_plugins.devices.uops.writing import Kernel, combined

NOTHING = -1e30
"""The score of a position that does not exist."""
SHORT, LONG = 32, 128
"""Positions per slice, if up to ``FEW`` are seen, and if more are."""
FEW = 2048
LANES = 8
"""Threads that share a key."""
MOST_QUERIES, MOST_LONG_QUERIES = 1024, 2048
"""Numbers of the query heads that a thread group handles, in short slices and in long ones. If a key head has more,
several groups share them, which reads its keys and values once more."""
JOINING = 256
"""Threads that combine slices."""


@dataclass(frozen=True)
class Slices:
    """How attention of a layer is split into slices of positions."""

    layer: LayerConfig
    heads: int
    slots: int
    """Slots of the cache."""
    packing: Packing
    """Packing of the cache's numbers."""

    @property
    def size(self) -> int:
        """Numbers of a head."""
        return self.layer.head_dim

    @property
    def key_heads(self) -> int:
        return self.layer.num_key_value_heads

    @cached_property
    def together(self) -> int:
        """Query heads per thread group: some or all of those that share a key head."""
        group = self.heads // self.key_heads
        most = min(group, (MOST_LONG_QUERIES if self.seen > FEW else MOST_QUERIES) // self.size)
        return next(n for n in range(max(most, 1), 0, -1) if group % n == 0)

    @property
    def items(self) -> int:
        """Thread groups per slice."""
        return self.heads // self.together

    @property
    def seen(self) -> int:
        """The most positions that a query sees."""
        return self.slots if self.layer.window is None else self.layer.window

    @property
    def length(self) -> int:
        """Positions per slice."""
        return SHORT if self.seen <= FEW else LONG

    @property
    def most(self) -> int:
        """The largest number of slices."""
        return -(-self.seen // self.length)

    @property
    def threads(self) -> int:
        """Threads per group: one for each pair of numbers of a head."""
        return self.size // 2

    @property
    def name(self) -> str:
        """The part of kernels' names that encodes these settings."""
        kind = (self.layer.window or 0, int(self.layer.is_shared), int(self.layer.k_eq_v))
        return "_".join(map(str, (self.packing.name, self.size, self.heads, self.key_heads, self.slots, *kind)))

    def held(self, position: UOp) -> UOp:
        """Positions of the cache that are seen: those before this one, and this one if another layer wrote it."""
        before = position if self.layer.window is None else position.minimum(self.layer.window - 1)
        return before + 1 if self.layer.is_shared else before

    def count(self, position: UOp) -> int | UOp:
        """Slices of this step; sliding layers always have all of theirs, of which some may be empty."""
        return position // self.length + 1 if self.layer.window is None else self.most


@dataclass(frozen=True)
class Parts:
    """Results of slices: fp32 ``[slices, heads, D]`` weighted values, ``[slices, heads, 2]`` maximum and sum."""

    values: Tensor
    statistics: Tensor


@dataclass(frozen=True)
class Heads:
    """A layer's projections, fp32, before norm and rotation: queries, then keys and values where it has its own."""

    raw: Tensor
    q_norm: Tensor
    k_norm: Tensor | None
    cos: Tensor
    sin: Tensor
    """For all positions, ``[positions, D / 2]``."""


def slices_of(layer: LayerConfig, heads: int, cache: Tensor) -> Slices:
    """How attention of a layer over this cache is split."""
    return Slices(layer, heads, int(cache.shape[3]), PACKINGS[cache.dtype])


def attend(cut: Slices, heads: Heads, cache: Tensor, start: UOp, eps: float) -> tuple[Parts, Tensor]:
    """Queries of one position against the cache ``[1, 2, kv heads, slots, D]``, which gets this position's key and
    value where the layer has its own. Returns the slices' parts, and the cache after that."""
    own, device = not cut.layer.is_shared, cache.device
    groups = lambda position: cut.count(position) * cut.items  # noqa: E731
    kernel = Kernel(f"layer_attend_{cut.name}", groups, cut.threads, start)
    values = kernel.write(Tensor.empty(cut.most, cut.heads, cut.size, dtype=dtypes.float32, device=device))
    statistics = kernel.write(Tensor.empty(cut.most, cut.heads, 2, dtype=dtypes.float32, device=device))
    memory = (kernel.write if own else kernel.read)(cache, cut.packing.word)
    found = kernel.run(*Slice(cut, kernel, heads, memory, eps).stores(values, statistics))
    return Parts(found[0], found[1]), found[2] if own else cache


@dataclass(frozen=True)
class CurrentPosition:
    """The key and value of the current position, which the cache does not hold yet."""

    scores: list[UOp]
    """Of each head; ``NOTHING`` in all slices but the first."""
    values: list[UOp]
    """This thread's two numbers."""
    stores: list[UOp]


class Slice:
    """Builds the kernel that attends to one slice."""

    def __init__(self, cut: Slices, kernel: Kernel, heads: Heads, cache: UOp, eps: float) -> None:
        self.cut, self.kernel, self.cache, self.eps = cut, kernel, cache, eps
        self.thread, self.position = kernel.thread, kernel.position
        self.raw = kernel.read(heads.raw)
        self.q_norm = Vector(kernel, heads.q_norm)
        self.k_norm = Vector(kernel, heads.k_norm) if heads.k_norm is not None else None
        self.cos, self.sin = Vector(kernel, heads.cos), Vector(kernel, heads.sin)
        self.index, self.item = kernel.group // cut.items, kernel.group % cut.items
        each = cut.heads // cut.key_heads // cut.together  # items of a key head
        self.key_head = self.item // each
        self.writes = self.index.eq(0) & (self.item % each).eq(0)
        """Whether this group is the one that writes the key head's new key and value into the cache."""
        self.words = cut.size // cut.packing.count
        held = cut.held(self.position)
        self.left = held - self.index * cut.length
        """Positions of this slice and of later ones."""
        first = self.position + cut.layer.is_shared - held + self.index * cut.length
        self.first = first if cut.layer.window is None else first % cut.slots

    # ---- places

    def slot(self, c: UOp) -> UOp:
        """The cache's slot of the slice's position ``c``; an arbitrary slot if the position does not exist."""
        slot = self.first + (c < self.left).where(c, 0)
        return slot if self.cut.layer.window is None else (slot < self.cut.slots).where(slot, slot - self.cut.slots)

    def row(self, kind: int, slot: UOp) -> UOp:
        """The first word of a key (0) or value (1)."""
        return ((kind * self.cut.key_heads + self.key_head) * self.cut.slots + slot) * self.words

    def numbers(self, kind: int, c: UOp, word: UOp, count: int) -> list[UOp]:
        """The numbers of words of the slice's position ``c``, zeros if it does not exist."""
        base = self.row(kind, self.slot(c)) + word
        words = [self.cache[(base + i).valid(c < self.left)] for i in range(count)]
        return [number for word in words for number in self.cut.packing.unpack(word)]

    # ---- heads

    def rotated(self, at: UOp | int, norm: Vector, scale: UOp) -> tuple[UOp, UOp]:
        """This thread's pair of a head whose numbers begin at ``at``."""
        half = self.cut.size // 2
        turn = self.position * half + self.thread
        a = self.raw[at + self.thread] * scale * norm[self.thread]
        b = self.raw[at + half + self.thread] * scale * norm[self.thread + half]
        cos, sin = self.cos[turn], self.sin[turn]
        return a * cos - b * sin, b * cos + a * sin

    def pair(self, g: int = 0) -> list[UOp]:
        """Where this thread's pair of head ``g`` is in the group's shared memory."""
        return [g * self.cut.size + self.thread, g * self.cut.size + self.cut.size // 2 + self.thread]

    def stores(self, values: UOp, statistics: UOp) -> list[UOp]:
        """What the kernel writes."""
        cut, kernel, size = self.cut, self.kernel, self.cut.size
        heads = range(cut.together)
        starts: list[UOp] = [(self.item * cut.together + g) * size for g in heads]
        key_at = (cut.heads + self.key_head) * size
        value_at = key_at if cut.layer.k_eq_v else key_at + cut.key_heads * size
        if self.k_norm is not None:
            starts += [key_at, value_at]
        squares = [[self.raw[at + place] * self.raw[at + place] for place in self.pair()] for at in starts]
        scales = [inverse_rms(s, size, self.eps) for s in kernel.gathered([a + b for a, b in squares], Ops.ADD)]
        queries = kernel.shared(cut.together * size)
        pairs = [self.rotated(starts[g], self.q_norm, scales[g]) for g in heads]
        queries = queries.after(UOp.group(*(
            queries[place].store(v) for g in heads for place, v in zip(self.pair(g), pairs[g], strict=True)
        )))  # fmt: skip
        new = None
        if self.k_norm is not None:
            key = self.rotated(key_at, self.k_norm, scales[-2])
            new = self.fresh(queries, key, value_at, scales[-1])
        probabilities, tops, sums = self.weights(queries, None if new is None else new.scores)
        mixed = self.mixed(probabilities)
        if new is not None:
            own = [(score - top).exp() for score, top in zip(new.scores, tops, strict=True)]
            sums = [s + o for s, o in zip(sums, own, strict=True)]
            mixed = [[two[n] + o * new.values[n] for n in range(2)] for two, o in zip(mixed, own, strict=True)]
        found = [] if new is None else new.stores
        first = self.index * cut.heads + self.item * cut.together
        only = self.thread.eq(0)
        for g in heads:
            found += [values[(first + g) * size + self.thread * 2 + n].store(v) for n, v in enumerate(mixed[g])]
            found += [statistics[((first + g) * 2 + n).valid(only)].store(v) for n, v in enumerate((tops[g], sums[g]))]
        return found

    def fresh(self, queries: UOp, pair: Sequence[UOp], value_at: UOp, value_scale: UOp) -> CurrentPosition:
        """The new key and value, rounded as the cache rounds them."""
        cut, kernel, packing = self.cut, self.kernel, self.cut.packing
        assert packing.pack is not None
        key = kernel.shared(cut.size)
        rounded = [packing.rounded(v) for v in pair]
        key = key.after(UOp.group(*(key[at].store(v) for at, v in zip(self.pair(), rounded, strict=True))))
        each = 2 // packing.count  # a thread's words of a head
        slot = self.position if cut.layer.window is None else self.position % cut.slots
        values, stores = [], []
        for w in range(each):
            at = self.thread * each + w
            places = [at * packing.count + n for n in range(packing.count)]
            numbers = [packing.rounded(self.raw[value_at + n] * value_scale) for n in places]
            values += numbers
            for kind, made in enumerate(([key[n] for n in places], numbers)):
                stores.append(self.cache[(self.row(kind, slot) + at).valid(self.writes)].store(packing.pack(made)))
        heads = range(cut.together)
        dots = [combined([queries[at] * v for at, v in zip(self.pair(g), rounded, strict=True)]) for g in heads]
        scores = [self.index.eq(0).where(score, NOTHING) for score in kernel.gathered(dots, Ops.ADD)]
        return CurrentPosition(scores, values, stores)

    # ---- scores and values

    def scores(self, queries: UOp) -> UOp:
        """Scores of the slice's positions, in shared memory, ``[positions, heads]``: several threads per key."""
        cut, kernel, heads = self.cut, self.kernel, range(self.cut.together)
        vector = vector_of(self.words)
        chunks = self.words // vector
        lanes = next(n for n in range(min(LANES, chunks), 0, -1) if chunks % n == cut.threads % n == 0)
        keys = next(n for n in range(cut.threads // lanes, 0, -1) if cut.length % n == 0)
        lane, mine = self.thread % lanes, self.thread // lanes % keys  # threads beyond repeat what others do
        stride = lanes + 1  # so that sums begin in different banks
        part, scores = kernel.shared(keys * cut.together * stride), kernel.shared(cut.length * cut.together)
        count = keys * cut.together  # scores of a round

        def round_of(turn: UOp) -> list[UOp]:
            def terms(step: UOp) -> list[UOp]:
                chunk = step * lanes + lane
                numbers = self.numbers(0, turn * keys + mine, chunk * vector, vector)
                at = chunk * len(numbers)
                return [combined([n * queries[g * cut.size + at + i] for i, n in enumerate(numbers)]) for g in heads]

            dots = kernel.sum_over(chunks // lanes, terms)
            at = mine * cut.together
            held = part.after(UOp.group(*(part[(at + g) * stride + lane].store(v) for g, v in enumerate(dots))))

            def total(i: UOp) -> UOp:
                seen = turn * keys + i // cut.together < self.left
                return seen.where(combined([held[i * stride + n] for n in range(lanes)]), NOTHING)

            return [scores[turn * count + i].store(total(i)) for i in self.repeated(count)]

        return scores.after(kernel.each(cut.length // keys, round_of))

    def repeated(self, count: int) -> list[UOp]:
        """This thread's indices below ``count``. All threads together cover all of them; some are repeated."""
        return [(turn * self.cut.threads + self.thread) % count for turn in range(-(-count // self.cut.threads))]

    def weights(self, queries: UOp, new: list[UOp] | None) -> tuple[UOp, list[UOp], list[UOp]]:
        """Exponentials of the slice's scores less the maximum, ``[positions, heads]``; each head's maximum and sum."""
        cut, kernel, heads = self.cut, self.kernel, range(self.cut.together)
        scores = self.scores(queries)
        tops = kernel.max_over(cut.length, lambda c: [scores[c * cut.together + g] for g in heads])
        if new is not None:
            tops = [top.maximum(score) for top, score in zip(tops, new, strict=True)]
        probabilities = kernel.shared(cut.length * cut.together)

        def probability(i: UOp) -> UOp:
            top = tops[0]
            for g in heads[1:]:
                top = (i % cut.together).eq(g).where(tops[g], top)
            return (i // cut.together < self.left).where((scores[i] - top).exp(), 0.0)

        places = self.repeated(cut.length * cut.together)
        probabilities = probabilities.after(UOp.group(*(probabilities[i].store(probability(i)) for i in places)))
        sums = kernel.sum_over(cut.length, lambda c: [probabilities[c * cut.together + g] for g in heads])
        return probabilities, tops, sums

    def mixed(self, probabilities: UOp) -> list[list[UOp]]:
        """Each head's weighted sum of values: this thread's two neighbours."""
        cut, heads = self.cut, range(self.cut.together)
        each = 2 // cut.packing.count  # a thread's words of a head
        wide = next(n for n in (8, 4, 2, 1) if cut.length % n == 0)

        def terms(step: UOp) -> list[UOp]:
            found: list[list[UOp]] = [[] for _ in range(cut.together * 2)]
            for i in range(wide):
                c = step * wide + i
                for n, number in enumerate(self.numbers(1, c, self.thread * each, each)):
                    for g in heads:
                        found[g * 2 + n].append(probabilities[c * cut.together + g] * number)
            return [combined(one) for one in found]

        sums = self.kernel.sum_over(cut.length // wide, terms)
        return [sums[g * 2 : g * 2 + 2] for g in heads]


def combine_slices(cut: Slices, parts: Parts, start: UOp, layout: Layout) -> Tensor:
    """The result of attention, fp32 ``[heads * D]``, from the slices' parts, in the layout of the next product's
    operand."""
    size, lanes = cut.size, next(n for n in (32, 16, 8, 4, 2) if cut.size % n == 0)
    blocks, sets = size // lanes, JOINING // lanes
    k = Kernel(f"layer_join_{cut.name}_{cut.most}_{layout.vector}", cut.heads * blocks, JOINING, start)
    out = k.write(Tensor.empty(cut.heads * size, dtype=dtypes.float32, device=parts.values.device))
    values, statistics = k.read(parts.values), k.read(parts.statistics)
    head, number = k.group // blocks, k.group % blocks * lanes + k.thread % lanes
    count = cut.count(k.position)

    def part(s: UOp) -> tuple[UOp, UOp]:
        """A slice's place among the parts, and whether it exists."""
        inside = s < count
        return inside.where(s, 0) * cut.heads + head, inside

    def top_of(turn: UOp) -> list[UOp]:
        at, inside = part(turn * JOINING + k.thread)
        return [inside.where(statistics[at * 2], NOTHING)]

    top = k.gathered(k.max_over((count + (JOINING - 1)) // JOINING, top_of), Ops.MAX)[0]

    def terms(turn: UOp) -> list[UOp]:
        at, inside = part(turn * sets + k.thread // lanes)
        share = inside.where((statistics[at * 2] - top).exp(), 0.0)
        return [share * values[at * size + number], share * statistics[at * 2 + 1]]

    found = list(enumerate(k.sum_over((count + (sets - 1)) // sets, terms)))
    shared = k.shared(2 * JOINING)
    shared = shared.after(UOp.group(*(shared[n * JOINING + k.thread].store(v) for n, v in found)))
    own = k.thread % lanes
    value, total = (combined([shared[n * JOINING + o * lanes + own] for o in range(sets)]) for n, _ in found)
    place = layout.place(head * size + number)
    return k.run(out[place.valid(k.thread < lanes)].store(value / total))[0]
