"""Telling callbacks of a run, so that one that raises costs nothing but itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from gemma4_core.contracts import TrainingCallback
from gemma4_core.errors import Gemma4Error, Gemma4Warning, InputError, PluginError
from gemma4_core.formatting import shown
from gemma4_core.plugins.origin import describe, nearest, one_line

EVENTS = ("on_start", "on_step", "on_evaluate", "on_checkpoint", "on_end")


def name_of(callback: Any) -> str:
    """What messages call a callback."""
    name = getattr(callback, "name", None)
    return one_line(name if isinstance(name, str) and name else type(callback).__name__, 60)


def warn(text: str) -> None:
    """Warn as Python does; the command prints it instead."""
    warnings.warn(text, Gemma4Warning, stacklevel=2)


class Callbacks:
    """The callbacks of a run. One that raised is not told anything any more."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        """Raises InputError for what is no callback."""
        if not isinstance(callbacks, Sequence) or isinstance(callbacks, str | bytes):
            raise InputError(f"callbacks {shown(callbacks)}: give a list of TrainingCallback")
        for callback in callbacks:
            events = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
            odd = next((name for name in events if name not in EVENTS), None)
            if odd is not None and nearest(odd, EVENTS):
                raise InputError(f"callback '{name_of(callback)}': no event is called {odd}{nearest(odd, EVENTS)}")
            if isinstance(callback, type) or not {*events} & {*EVENTS}:
                raise InputError(f"callback {shown(repr(callback))}: give an object of a class derived from "
                                 f"TrainingCallback, with {', '.join(EVENTS)}")
        self.active: list[TrainingCallback] = list(callbacks)
        self.warn: Callable[[str], None] = warn
        """What is called where one that is not required is switched off."""
        self.fault: PluginError | None = None
        """Of the first one that raised, until ``check`` raises it."""

    def tell(self, event: str, trainer: Any, *about: Any) -> None:
        """Call a method of each. What one raises is kept for ``check``, so that the others are told as well."""
        for callback in list(self.active):
            method = getattr(callback, event, None)
            if method is None:
                continue
            try:
                method(trainer, *about)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: a plugin must not end the program
                self.active.remove(callback)
                self._failed(callback, f"{event} at step {trainer.step}", error)

    def _failed(self, callback: TrainingCallback, when: str, error: BaseException) -> None:
        reason = one_line(error, 200) if isinstance(error, Gemma4Error) else describe(error)[:200]
        text = f"callback '{name_of(callback)}' failed in {when}: {reason}"
        if not getattr(callback, "required", True):
            self.warn(f"{text}; it is switched off")
        elif self.fault is None:
            self.fault = PluginError(text)
            self.fault.__cause__ = error

    def check(self) -> None:
        """Raise the PluginError of a callback that raised, once."""
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
