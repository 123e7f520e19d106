"""Drafters: what proposes tokens that one step of the model checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_core.contracts.context import Matches, Option, always

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import DecoderView, Drafter, Slots


@dataclass(frozen=True)
class DrafterBackend:
    """A way to propose the tokens that may follow. It proposes and never decides: the model's own choice is kept while
    it equals the proposal, so that an answer is the same with and without drafts."""

    name: str
    summary: str
    build: Callable[[DecoderView, Slots, Mapping[str, Any]], Drafter]
    """``build(target, slots, values)``: a drafter for the target model and its slots; gets the values of ``options`` by
    keyword. Raises InputError where it cannot draft for this model."""
    options: tuple[Option, ...] = ()
    matches: Matches = always
    priority: int = 0
