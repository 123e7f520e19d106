"""What this process has changed outside of this project: functions of tinygrad, its default device, open devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ProcessState:
    """Changes that hold for the whole process; they are made once and stay."""

    dev: tuple[str, str] | None = None
    """``DEV`` as this project set it, and as the user had it before."""
    cache_file: str = ""
    """``CACHEDB`` as this project set it."""
    opened: set[str] = field(default_factory=set)
    """tinygrad's devices that were opened to see whether they work."""
    replaced: dict[tuple[Any, str], Any] = field(default_factory=dict)
    """Functions that stand in for others, by owner and name: those that were there before."""

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put ``make(original)`` in the place of a function of a module or class. Once: later calls change nothing."""
        key = owner, name
        if key not in self.replaced:
            self.replaced[key] = original = getattr(owner, name)
            setattr(owner, name, make(original))

    def original(self, owner: Any, name: str) -> Any:
        """The function that was in a place before, the one that is there where nothing replaced it."""
        return self.replaced.get((owner, name), getattr(owner, name))


process = ProcessState()
"""The one of this process."""
