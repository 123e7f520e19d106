"""Grammars compiled by llguidance, within bounds of size and time, and a few of them kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from gemma4_core import InputError
from gemma4_core.formatting import shown

MOST_KEPT = 32
"""Compiled grammars of a tokenizer that are kept for the next request."""


def limits() -> Any:
    """llguidance's bounds: about 20 ms to make the first lexer state, 15 ms and 3 ms for one mask, 50 MB of states."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_grammar_size=200_000, max_lexer_states=50_000, verbose_errors=False)


def said(error: str) -> str:
    """llguidance's message on one line; grammars and states that it appends are left out."""
    text = error.split("<state>")[0].split("\n   1 |")[0]
    return shown(" ".join(text.split()), 250).strip('"')


class Grammars:
    """The compiled grammars of one tokenizer. May be used from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str, what: str) -> Any:
        """A fresh matcher of a serialized grammar. Raises InputError naming ``what`` for one that is wrong, too large
        or allows nothing."""
        from llguidance import LLMatcher

        with self._lock:
            found = self._kept.get(grammar)
            if found is not None:
                self._kept.move_to_end(grammar)
        if found is None:
            # the interpreter is free meanwhile
            found = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits())
            self._check(found, what)
            with self._lock:
                self._kept[grammar] = found
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
        return found.deep_copy()

    def _check(self, matcher: Any, what: str) -> None:
        if not matcher.is_error():
            trial = matcher.deep_copy()
            if begins(trial, self._tokenizer.vocab_size - 1):
                return
            if not trial.is_error() or "NoExtension" in trial.get_error():
                raise InputError(f"constraint {what}: allows no text at all")
            matcher = trial
        raise InputError(f"constraint {what}: {said(matcher.get_error())}")


def begins(matcher: Any, end: int) -> bool:
    """Whether a matcher allows any token but ``end``, its own last one, or nothing more is wanted."""
    found = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:end]
    return bool(found.any()) or (bool(matcher.is_accepting()) and not matcher.is_error())
