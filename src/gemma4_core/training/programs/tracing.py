"""Functions of tensors as lists of kernels over named buffers, scheduled without running or allocating anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tinygrad import Tensor, UOp
from tinygrad.dtype import AddrSpace
from tinygrad.engine.realize import capturing, get_call_outs_ins
from tinygrad.helpers import Context as TinygradContext
from tinygrad.uop import Ops

from gemma4_core.training.programs.program import Program


class Recorder:
    """What tinygrad hands schedules to while it captures."""

    def __init__(self) -> None:
        self.calls: list[UOp] = []

    def add_linear(self, linear: UOp, var_vals: dict[str, int]) -> None:
        self.calls += linear.src


def trace(
    function: Callable[..., Mapping[str, Tensor]], inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Program:
    """The kernels of ``function(**inputs)``, which gives outputs by name; inputs are from ``placeholder``.

    ``weights`` are realized tensors that the function reads or assigns to, by the name that they are bound under.
    """
    names = {tensor.uop.base: name for name, tensor in weights.items()}
    names |= {tensor.uop.base: name for name, tensor in inputs.items()}
    recorder = Recorder()
    capturing.append(recorder)
    try:
        with TinygradContext(TRAINING=1):
            made: dict[str, Tensor] = {}
            for name, output in function(**inputs).items():
                if output.uop.base.op is Ops.AFTER:  # assigned in place
                    made[name] = output
                    continue
                tensor = output.contiguous()
                known = tensor.uop.base in names or any(tensor.uop is other.uop for other in made.values())
                made[name] = tensor.clone() if known else tensor
            Tensor.realize(*made.values())
    finally:
        capturing.clear()
    for name, tensor in made.items():
        names.setdefault(tensor.uop.buf_uop, name)
    calls = without_copies(recorder.calls, names)
    used = {buffer for call in calls for buffer in call.src[1:]}
    own = frozenset(b for b in used - names.keys() if b.op is Ops.BUFFER and not b.is_realized)
    return Program(tuple(calls), {b: name for b, name in names.items() if b in used}, own)


def placeholder(*shape: int, dtype: Any, device: str) -> Tensor:
    """An input of a traced function; it has no memory."""
    return Tensor.empty(*shape, dtype=dtype, device=device)


# ------------------------------------------------------------------------------------------------------------- copies


def without_copies(calls: list[UOp], names: dict[UOp, str]) -> list[UOp]:
    """The calls without kernels that copy a buffer as it is, which tinygrad makes at each ``contiguous`` of a raw
    kernel's reshaped result, and without a raw kernel's second run over the same inputs, which tinygrad does not merge.
    What they would write becomes another name of what is there."""
    writers = Counter(buffer for call in calls for buffer in written(call))
    same: dict[UOp, UOp] = {}
    made: dict[tuple[UOp, ...], UOp] = {}
    kept: list[UOp] = []
    for call in calls:
        call = call.replace(src=(call.src[0], *(same.get(buffer, buffer) for buffer in call.src[1:])))
        pair = copied(call)
        if pair is not None and writers[pair[0]] == 1 and writers[pair[1]] <= 1:
            target, source = pair
            if target not in names or (source not in names and writers[source] == 1 and is_memory(source)):
                if target in names:
                    names[source] = names.pop(target)
                    kept = [rename(one, target, source) for one in kept]
                same[target] = source
                continue
        elif call.src[0].op is Ops.PROGRAM and all(writers[buffer] <= 1 for buffer in call.src[1:]):
            target, *inputs = call.src[1:]
            first = made.setdefault((call.src[0], *inputs), target)
            if first is not target and written(call) == [target] and target not in names:
                same[target] = first
                continue
        kept.append(call)
    return kept


def rename(call: UOp, old: UOp, new: UOp) -> UOp:
    return call.replace(src=(call.src[0], *(new if buffer is old else buffer for buffer in call.src[1:])))


def is_memory(buffer: UOp) -> bool:
    """Whether this is a whole buffer that is not allocated yet."""
    return buffer.op is Ops.BUFFER and buffer.arg.addrspace is AddrSpace.GLOBAL and not buffer.is_realized


def written(call: UOp) -> list[UOp]:
    """The buffers that a call writes; all of them where nothing is known."""
    ast = call.src[0]
    if ast.op is not Ops.SINK:
        outs = get_call_outs_ins(call)[0]
        return [call.src[1 + out] for out in outs] if outs else list(call.src[1:])
    return [call.src[1 + slot] for slot in {slot_of(u.src[0]) for u in ast.toposort() if u.op is Ops.STORE}
            if slot is not None]


def slot_of(place: UOp) -> int | None:
    """Which argument of a kernel an index or a shaped view points into; None for a register."""
    while place.op is not Ops.PARAM:
        if not place.src:
            return None
        place = place.src[0]
    return int(place.arg.slot)


def copied(call: UOp) -> tuple[UOp, UOp] | None:
    """Target and source of a call that copies a whole buffer as it is; None for any other."""
    ast = call.src[0]
    if ast.op is not Ops.SINK or len(call.src) != 3:
        return None
    stores = [u for u in ast.toposort() if u.op is Ops.STORE]
    if len(stores) != 1:
        return None
    to, value = stores[0].src[:2]
    value = value.src[0] if value.op is Ops.LOAD else value
    if not all(u.op is Ops.INDEX and u.src[0].op is Ops.PARAM for u in (to, value)) or to.src[1:] != value.src[1:]:
        return None
    target, source = (call.src[1 + int(u.src[0].arg.slot)] for u in (to, value))
    same = target.max_numel() == source.max_numel() and target.dtype == source.dtype and target is not source
    return (target, source) if same else None
