"""Stop strings that may fall across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_core.errors import InputError


class StopStrings:
    """Passes text on until a stop string appears, holding back what may be the start of one.

    The stop string that is complete first ends the text, of several complete at the same character the one that began
    first; so the result does not depend on how the text was cut into pieces. The stop string itself is not passed on.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Raises InputError for an empty stop string and for anything but a string."""
        if isinstance(stops, str):
            stops = (stops,)
        for stop in stops:
            if not isinstance(stop, str):
                raise InputError(f"a stop string (--stop) must be text, not {str(stop)[:40]!r}")
            if not stop:
                raise InputError("a stop string (--stop) is empty: '' would stop before the first character")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.stopped = False
        self.found: str | None = None
        """The one that ended the text."""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that can be passed on now, and whether a stop string was found. Nothing follows a found one."""
        if self.stopped:
            return "", True
        self._held += text
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self.stopped = True
            emit, self._held = self._held[:start], ""
            return emit, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        emit, self._held = self._held[:cut], self._held[cut:]
        return emit, False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        emit, self._held = self._held, ""
        return emit


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
