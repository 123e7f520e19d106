"""From a specification to the constraint of one answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gemma4_core import InputError
from gemma4_core.contracts import ANSWER_KEY, AnswerContext, Constraint, Tokenizer
from gemma4_core.formatting import shown
from gemma4_schema.compiling import MOST_KEPT
from gemma4_schema.constraint import FormConstraint, Lead
from gemma4_schema.reading import SIZE_LIMIT, checked_size
from gemma4_schema.schemas import schema_grammar
from gemma4_schema.tool_calls import MARKS, call_grammar
from gemma4_schema.vocabulary import library, vocabulary

KINDS = ("json_schema", "json_object", "regex", "lark", "tools")
OPTIONS = {"parallel_tool_calls": ("tools",), "thinking_budget": KINDS}
"""Further keys, with the kinds that they go with."""
ENDINGS = ("<turn|>", "<eos>", "<|tool_response>")
"""Tokens that end an answer where nothing else is said."""


def build(tokenizer: Tokenizer, specification: Mapping[str, Any]) -> Constraint:
    """The constraint of one answer.

    Args:
        tokenizer: the model's.
        specification: exactly one of ``{"json_schema": {…}}``, ``{"json_object": true}``, ``{"regex": "…"}``,
            ``{"lark": "…"}`` and ``{"tools": "required" | "auto" | {"name": …}}``; with ``tools`` also
            ``parallel_tool_calls`` (true), with all of them ``thinking_budget``, the most ids of thoughts; and the
            request's ``AnswerContext`` under ``answer``.

    Raises:
        InputError: a specification that is wrong or too large, or cannot be kept while an answer is made.
    """
    kind, value = _kind(specification)
    answer = specification.get(ANSWER_KEY)
    if answer is None:
        ends = [tokenizer.special_tokens[name] for name in ENDINGS if name in tokenizer.special_tokens]
        answer = AnswerContext(tokenizer.vocab_size, tuple(ends))
    if not answer.stop_ids:
        raise InputError(f"constraint {kind}: nothing may end the answer; leave ignore_eos off, or give stop_ids")
    budget = _budget(specification, answer)
    grammar = _grammar(kind, value, tokenizer, answer, specification.get("parallel_tool_calls", True))
    known = vocabulary(tokenizer)
    matcher = known.grammars.matcher(grammar, kind)
    opening = known.special[MARKS[0]] if kind == "tools" else -1
    return FormConstraint(known, matcher, answer, Lead(answer.thinking, budget, value == "auto", opening))


def prepare(tokenizer: Tokenizer) -> None:
    """Make llguidance's form of a tokenizer, which takes seconds for a large vocabulary."""
    vocabulary(tokenizer)


def _kind(specification: Mapping[str, Any]) -> tuple[str, Any]:
    given = {key: value for key, value in specification.items() if key != ANSWER_KEY}
    for key in given:
        if key not in KINDS and key not in OPTIONS:
            raise InputError(f"constraint {shown(given, 80)}: {shown(key, 40)} is unknown; give one of "
                             f"{', '.join(KINDS)}")
    kinds = [key for key in KINDS if key in given]
    if len(kinds) != 1:
        raise InputError(f"constraint {shown(given, 80)}: must have exactly one of {', '.join(KINDS)}, and has "
                         f"{' and '.join(kinds) or 'none'}")
    for key in OPTIONS:
        if key in given and kinds[0] not in OPTIONS[key]:
            raise InputError(f"constraint {kinds[0]}: {key} goes with {' and '.join(OPTIONS[key])} alone")
    if not isinstance(given.get("parallel_tool_calls", True), bool):
        raise InputError(f"constraint: parallel_tool_calls {shown(given['parallel_tool_calls'], 40)} must be true or "
                         "false")
    return kinds[0], given[kinds[0]]


def _budget(specification: Mapping[str, Any], answer: AnswerContext) -> int:
    """Most ids of thoughts: what was asked for, but half of the answer at most, so that its form has room."""
    room = sys.maxsize if answer.limit is None else max(answer.limit // 2, 1)
    given = specification.get("thinking_budget")
    if given is None:
        return room
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError(f"constraint: thinking_budget {shown(given, 40)} must be a whole number from 1")
    return min(given, room)


def _grammar(kind: str, value: Any, tokenizer: Tokenizer, answer: AnswerContext, parallel: bool) -> str:
    """The serialized grammar of a specification."""
    matcher = library().LLMatcher
    if kind == "json_object":
        if value is not True:
            raise InputError(f"constraint json_object {shown(value, 60)}: must be true")
        lark = _of_schema('{"type": "object"}')
    elif kind == "json_schema":
        checked_size(value)
        lark = _of_schema(json.dumps(value))
    elif kind == "tools":
        if value not in ("required", "auto") and not isinstance(value, Mapping):
            raise InputError(f"constraint tools {shown(value, 60)}: must be \"required\", \"auto\" or {{\"name\": …}}")
        special = {mark: tokenizer.special_tokens[mark] for mark in MARKS if mark in tokenizer.special_tokens}
        lark = _of_tools(json.dumps([list(answer.tools), value, parallel, special]))
    else:
        if not isinstance(value, str) or not value:
            raise InputError(f"constraint {kind} {shown(value, 60)}: must be text")
        if len(value.encode(errors="replace")) > SIZE_LIMIT:
            raise InputError(f"constraint {kind}: more than {SIZE_LIMIT} bytes; make it smaller")
        return str(matcher.grammar_from_regex(value) if kind == "regex" else matcher.grammar_from_lark(value))
    return str(matcher.grammar_from_lark(lark))


@lru_cache(MOST_KEPT)
def _of_schema(text: str) -> str:
    return schema_grammar(json.loads(text))


@lru_cache(MOST_KEPT)
def _of_tools(text: str) -> str:
    return call_grammar(*json.loads(text))
