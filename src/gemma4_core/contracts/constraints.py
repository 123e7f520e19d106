"""Constraints: answers of a given form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_core.contracts.context import Matches, always

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Constraint
    from gemma4_core.contracts.tokenizers import Tokenizer


@dataclass(frozen=True)
class ConstraintBackend:
    """A way to hold an answer to a form: JSON schema, regular expression, grammar, tool calls."""

    name: str
    summary: str
    build: Callable[[Tokenizer, Mapping[str, Any]], Constraint]
    """``build(tokenizer, specification)``: the constraint of one answer, from a mapping such as ``{"json_schema":
    {…}}``. Raises InputError for a specification that it cannot serve."""
    matches: Matches = always
    priority: int = 0
