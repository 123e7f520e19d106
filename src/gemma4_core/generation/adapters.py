"""Switching between a model's adapters from request to request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.model.model import GemmaModel
from gemma4_core.plugins.origin import nearest


class AdapterSwitch:
    """Puts one adapter in force at a time; None is what was in force when the switch was made."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.usual = dict(model.adapters.active) if model.adapters is not None else {}
        self.current: str | None = None

    def check(self, adapter: str | None) -> None:
        """Raise InputError for an adapter that is not loaded."""
        adapters = self.model.adapters
        if adapter is None or (adapters is not None and adapter in adapters.loaded):
            return
        loaded = [*adapters.loaded] if adapters is not None else []
        raise InputError(f"adapter {shown(adapter)}: not loaded{nearest(adapter, loaded)}; loaded: "
                         f"{', '.join(loaded) or 'none'}")

    def use(self, adapter: str | None) -> None:
        """Put an adapter in force. Raises InputError for one that is not loaded."""
        if adapter == self.current:
            return
        self.check(adapter)
        adapters = self.model.adapters
        assert adapters is not None
        names = (adapter,) if adapter is not None else tuple(self.usual)
        strength = next(iter(self.usual.values()), 1.0) if adapter is None else 1.0
        if names:
            adapters.activate(*names, strength=strength)
        else:
            adapters.deactivate()
        self.current = adapter


@contextmanager
def adapter_in_force(model: GemmaModel, adapter: str | None) -> Iterator[None]:
    """Answer with an adapter, and put back afterwards what was in force."""
    switch = AdapterSwitch(model)
    switch.use(adapter)
    try:
        yield
    finally:
        switch.use(None)
