"""A mixture of experts for one position; the kernel that multiplies with the experts' rows also selects them."""

from __future__ import annotations

from tinygrad import Tensor, UOp, dtypes

from gemma4_plugins.devices.uops.stream import Vector
from gemma4_plugins.devices.uops.writing import Kernel

NEVER = -1e30
"""The router's sum for an expert that does not exist."""


class Choice:
    """The ``count`` largest of the router's sums, the earlier of equals first, and their shares, in shared memory."""

    def __init__(self, kernel: Kernel, logits: Tensor, count: int) -> None:
        self.kernel, self.count = kernel, count
        experts = int(logits.numel())
        steps = -(-experts // kernel.threads)
        memory, room = kernel.read(logits), steps * kernel.threads
        held, ranks = kernel.shared(room), kernel.shared(room, dtypes.int)
        each = lambda stores: kernel.each(steps, lambda step: stores(step * kernel.threads + kernel.thread))  # noqa: E731

        # the list is padded with experts that are never chosen, so that only the last stores have a condition:
        # tinygrad 0.14 simplifies an index under its condition, and all that the index is computed from
        def filled(e: UOp) -> list[UOp]:
            there = e < experts
            return [held[e].store(there.where(memory[there.where(e, 0)], NEVER))]

        def ranked(e: UOp) -> list[UOp]:
            before = lambda j: (held[j] > held[e]) | (held[j].eq(held[e]) & (j < e))  # noqa: E731
            return [ranks[e].store(kernel.sum_over(experts, lambda j: [before(j).cast(dtypes.int)])[0])]

        held = held.after(each(filled))
        ranks = ranks.after(each(ranked))
        chosen, scores = kernel.shared(count, dtypes.int), kernel.shared(count)

        def placed(e: UOp) -> list[UOp]:
            place = ranks[e].valid(ranks[e] < count)
            return [chosen[place].store(e.cast(dtypes.int)), scores[place].store(held[e])]

        done = each(placed)
        self.experts, self.scores = chosen.after(done), scores.after(done)

    def expert(self, place: UOp | int) -> UOp:
        """The expert that was chosen as number ``place``."""
        # in the type of indices: a cast around what is added to it would hide that vectors are aligned
        return self.experts[place].load().cast(dtypes.weakint)

    def shares(self, scale: Vector) -> UOp:
        """Softmax over the chosen experts, each times its expert's scale, in shared memory."""
        shares = self.kernel.shared(self.count)
        relative = lambda i: (self.scores[i] - self.scores[0]).exp()  # noqa: E731
        total = self.kernel.sum_over(self.count, lambda i: [relative(i)])[0]

        def stores(i: UOp, mine: UOp) -> list[UOp]:
            return [shares[i.valid(mine)].store(relative(i) / total * scale[self.expert(i)])]

        return shares.after(self.kernel.spread(self.count, stores))
