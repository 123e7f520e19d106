"""Shared by the tests: the small tokenizer, answers drawn at random from a constraint, and what a grammar takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import gemma4_schema
import numpy as np
from gemma4_schema.building import build
from gemma4_schema.compiling import limits
from gemma4_schema.regexes import _byte_tokenizer
from gemma4_schema.schemas import schema_grammar

from gemma4_core import registry
from gemma4_core.contracts import ANSWER_KEY, AnswerContext, Context
from gemma4_core.text import AnswerSplitter
from gemma4_core.text.tiny import TINY_STOP_IDS, TINY_VOCAB_SIZE

TOKENIZER = Path(str(files("gemma4_core") / "data" / "tokenizer"))


@cache
def tokenizer() -> Any:
    """The small tokenizer that ships with the core."""
    context = Context(folder=TOKENIZER, path=TOKENIZER)
    return registry.select("tokenizer", context).load(context)


@contextmanager
def registered() -> Iterator[None]:
    """The plugin, registered by hand where it is not installed."""
    by_hand = "schema" not in registry.constraints
    if by_hand:
        registry.register(gemma4_schema, "schema-under-test")
    try:
        yield
    finally:
        if by_hand:
            registry.unregister("schema-under-test")


def answer_context(**fields: Any) -> AnswerContext:
    """What a request tells."""
    return AnswerContext(**{"vocab_size": TINY_VOCAB_SIZE, "stop_ids": TINY_STOP_IDS} | fields)


def constraint(specification: Mapping[str, Any], **fields: Any) -> Any:
    """The constraint of an answer."""
    return build(tokenizer(), {**specification, ANSWER_KEY: answer_context(**fields)})


def tools_of(*schemas: Any) -> tuple[dict[str, Any], ...]:
    """Declarations of tools named ``tool.0``, ``tool.1``, …"""
    return tuple(
        {"type": "function", "function": {"name": f"tool.{i}", "parameters": schema}}
        for i, schema in enumerate(schemas)
    )


def allowed(form: Any) -> list[int]:
    """The ids that may follow."""
    return np.flatnonzero(np.unpackbits(form.mask().view(np.uint8), bitorder="little")).tolist()


def drawn(form: Any, rng: np.random.Generator, most: int = 4000) -> list[int]:
    """An answer of ids drawn at random from those allowed, up to the stop id, which is left out."""
    ids: list[int] = []
    while len(ids) < most:
        choice = int(rng.choice(allowed(form)))
        if choice in TINY_STOP_IDS:
            return ids
        form.advance(choice)
        ids.append(choice)
    raise AssertionError(f"no end: {text_of(ids)[-300:]!r}")


def text_of(ids: list[int]) -> str:
    """The text of ids, special tokens included."""
    return str(tokenizer().decode(ids))


def pieces_of(ids: list[int], prompt: list[int] | None = None, tools: Any = None) -> list[Any]:
    """What our reader makes of an answer."""
    splitter = AnswerSplitter(tokenizer(), prompt or [], tools=tools)
    return [piece for token in ids for piece in splitter.add(token)] + splitter.finish()


def takes(grammar: str, text: str) -> bool:
    """Whether a grammar takes a text, however that is cut into tokens."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits())
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


def fits(schema: Any, value: Any) -> bool:
    """Whether a value, or the text of one, can be an answer to a schema."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return takes(schema_grammar(schema), text)
