"""Constraints: answers of a given form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gemma4_core.contracts.context import Matches, always

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Constraint
    from gemma4_core.contracts.tokenizers import Tokenizer

ANSWER_KEY = "answer"
"""Where a specification has the ``AnswerContext``, which requests put there."""


@dataclass(frozen=True)
class AnswerContext:
    """What is known of the answer that a constraint is for."""

    vocab_size: int
    """V: ids of the model, of which the tokenizer may know fewer."""
    stop_ids: tuple[int, ...]
    """Ids that end the answer: to be allowed where its form is complete, and nowhere else. They are not given to
    ``advance``, but for drafts, which are taken back."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Declarations of the tools offered: ``{"type": "function", "function": {"name", "description",
    "parameters"}}``."""
    thinking: Literal["none", "allowed", "open"] = "none"
    """Whether a thought channel may come before the form, or was opened by the prompt."""
    limit: int | None = None
    """Most tokens of the answer."""


@dataclass(frozen=True)
class ConstraintBackend:
    """A way to hold an answer to a form: JSON schema, regular expression, grammar, tool calls."""

    name: str
    summary: str
    build: Callable[[Tokenizer, Mapping[str, Any]], Constraint]
    """``build(tokenizer, specification)``: the constraint of one answer, from a mapping such as ``{"json_schema":
    {…}}``, which also holds the request's ``AnswerContext`` under ``answer``. Called from any thread, and more than
    once for one answer. Raises InputError for a specification that it cannot serve."""
    matches: Matches = always
    priority: int = 0
    prepare: Callable[[Tokenizer], None] | None = None
    """Makes ready, once for a tokenizer, what would delay the first request; called where constraints are expected."""
