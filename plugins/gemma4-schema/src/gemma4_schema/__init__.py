"""Answers of a given form: JSON schemas, tool calls, regular expressions and grammars, by llguidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma4_core import ConstraintBackend, hookimpl
from gemma4_core.contracts import Constraint, Tokenizer


def _build(tokenizer: Tokenizer, specification: Mapping[str, Any]) -> Constraint:
    from gemma4_schema.building import build

    return build(tokenizer, specification)


def _prepare(tokenizer: Tokenizer) -> None:
    from gemma4_schema.building import prepare

    prepare(tokenizer)


@hookimpl
def gemma4_constraints() -> list[ConstraintBackend]:
    """One backend for all forms."""
    summary = "JSON schemas, tool calls, regular expressions and Lark grammars"
    return [ConstraintBackend(name="schema", summary=summary, build=_build, prepare=_prepare)]
