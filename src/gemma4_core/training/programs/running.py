"""Linked calls as one replay: memory is planned over the whole step, devices that replay graphs get one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinygrad import UOp
from tinygrad.engine.jit import graph_split_rewrite
from tinygrad.engine.realize import link_linear, run_linear
from tinygrad.helpers import JIT_BATCH_SIZE
from tinygrad.schedule.memory import memory_plan_rewrite
from tinygrad.uop import Ops


class Replay:
    """Compiled calls, run in order by each call of this object. ``own`` are the buffers that nobody else knows: they
    share memory where their lifetimes allow it, and are allocated by the first run."""

    def __init__(self, calls: Sequence[UOp], own: Iterable[UOp]) -> None:
        own = set(own)
        held = {buffer for call in calls for buffer in call.src[1:] if buffer not in own}
        linear = memory_plan_rewrite(UOp(Ops.LINEAR, src=tuple(calls)), held)
        self.kernels = len(linear.src)
        self.linear = link_linear(graph_split_rewrite(linear, max_batch_size=JIT_BATCH_SIZE.value))

    def __call__(self) -> None:
        run_linear(self.linear, jit=True)
