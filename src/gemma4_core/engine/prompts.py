"""The rows of prompts: how much of which ones runs next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma4_core.contracts.rows import Rows
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.prefix import PrefixStore
from gemma4_core.engine.rows import chunks, prompt_rows
from gemma4_core.engine.sequence import Sequence as TokenSequence

LEAST = 16
"""A prompt is not cut so that it gets fewer positions."""


class Prompts:
    """Cuts the prompts of one scheduler's sequences into rows."""

    def __init__(self, engine: Engine, prefixes: PrefixStore | None) -> None:
        self.engine, self.prefixes = engine, prefixes

    def rows(self, sequence: TokenSequence, most: int | None) -> Rows:
        """The next positions of a prompt: a whole chunk, or at most so many; never past a message's end that is to be
        kept. The prompt's last one is wanted."""
        lane = sequence.lane
        assert lane is not None
        size = self.engine.chunk_size(lane.slots)
        start, stop = chunks(sequence.prompt, 0, sequence.held.length, size if most is None else min(size, most))[0]
        ends = [end for end in sequence.boundaries if start < end < stop] if self.prefixes is not None else []
        stop = ends[0] if ends else stop
        lane.reserve(stop)
        wanted = [stop - start - 1] if stop == sequence.length else []
        return prompt_rows(sequence.prompt, 0, start, stop, slot=lane.slot, at=start, wanted=wanted)

    def note(self, sequence: TokenSequence, count: int) -> int:
        """Record that the next so many positions of a prompt were run; how many they are."""
        assert sequence.lane is not None
        start = sequence.held.length
        sequence.held.note(sequence.prompt.signature[start : start + count])
        if self.prefixes is not None and start + count in sequence.boundaries:
            self.prefixes.keep(sequence.lane.slot, start + count)
        return count

    def fitting(self, waiting: Sequence[TokenSequence], left: int) -> Iterator[tuple[TokenSequence, Rows | None]]:
        """The prompts that get some of ``left`` rows, the oldest first; None in place of rows for one that runs by
        itself, because of media or of what the host does to its logits."""
        for sequence in waiting:
            if left < min(LEAST, sequence.length - sequence.held.length):
                return
            rows = self.rows(sequence, left)
            alone = rows.media is not None or bool(sequence.choices.processors)
            left -= rows.count
            yield sequence, None if alone else rows
