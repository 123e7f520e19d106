"""A program: compiled kernels over named buffers, which are bound when it is linked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tinygrad import UOp
from tinygrad.engine.realize import get_call_outs_ins


@dataclass(frozen=True)
class Program:
    """Kernels in order. A call is the kernel and its buffers: those of ``names`` are bound when the program is linked,
    others of ``own`` are its own, and the rest are constants that the function closed over."""

    calls: tuple[UOp, ...]
    names: Mapping[UOp, str]
    own: frozenset[UOp]

    def bound(
        self, buffers: Mapping[str, UOp], places: dict[UOp, UOp], wanted: Iterable[int] | None = None
    ) -> list[UOp]:
        """The calls, or those with the indices ``wanted``, over these buffers. ``places`` holds the program's own
        buffers of this use, which are added as they come up."""

        def place(buffer: UOp) -> UOp:
            if buffer in self.names:
                return buffers[self.names[buffer]]
            if buffer not in self.own:
                return buffer
            if buffer not in places:
                places[buffer] = UOp.new_buffer(buffer.device, buffer.max_numel(), buffer.dtype)
            return places[buffer]

        chosen = self.calls if wanted is None else [self.calls[i] for i in sorted(wanted)]
        return [call.replace(src=(call.src[0], *map(place, call.src[1:]))) for call in chosen]

    def needed(self, outputs: Iterable[str]) -> set[int]:
        """Indices of the calls of a compiled program that these outputs need."""
        wanted = set(outputs)
        read = {buffer for buffer, name in self.names.items() if name in wanted}
        found = set()
        for index in reversed(range(len(self.calls))):
            call = self.calls[index]
            if any(call.src[1 + out] in read for out in get_call_outs_ins(call)[0]):
                found.add(index)
                read.update(call.src[1:])
        return found
