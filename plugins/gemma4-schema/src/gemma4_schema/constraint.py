"""``FormConstraint``: which ids may follow in one answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gemma4_core import InputError
from gemma4_core.contracts import AnswerContext
from gemma4_schema.compiling import said
from gemma4_schema.vocabulary import Vocabulary, bits

ROOM = 4
"""Calls that there must be room for where one more begins."""


@dataclass(frozen=True)
class Lead:
    """What may come before the form."""

    thinking: str = "none"
    """As in ``AnswerContext``."""
    budget: int = 0
    """Most ids of thoughts, with their closing."""
    free_text: bool = False
    """Whether text of any kind may stand in place of the form, or before it; then ``opening`` begins the form."""
    opening: int = -1
    """What begins a call, where the form is calls."""


class FormConstraint:
    """Thoughts, free text, and then a form that a matcher of llguidance holds the answer to.

    Free parts cost nothing but a fixed mask. All ids taken in are remembered, so that any number can be taken back.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, answer: AnswerContext, lead: Lead) -> None:
        self._vocabulary, self._matcher, self._lead = vocabulary, matcher, lead
        find = vocabulary.special.get
        self._channel, self._close = find("<|channel>", -1), find("<channel|>", -1)
        thinks = lead.thinking != "none" and self._close >= 0
        self._may_think = thinks and lead.thinking == "allowed" and self._channel >= 0
        self._size = size = answer.vocab_size
        self._stops = frozenset(token for token in answer.stop_ids if 0 <= token < size)
        self._stop_bits = bits(self._stops, size)
        self._channel_bit = bits([self._channel], size) if self._may_think else None
        self._close_bit = bits([self._close], size) if thinks else None
        self._text = vocabulary.text(size) if thinks or lead.free_text else self._stop_bits
        self._opening_bit = bits([lead.opening], size) if lead.opening >= 0 else None
        self._limit = sys.maxsize if answer.limit is None else answer.limit
        self._tokens: list[int] = []
        self._phases = ["thinking" if thinks and lead.thinking == "open" else self._after_thoughts()]
        """The phase before each id and the present one: ``thinking``, ``text``, ``form`` or ``ended``."""
        self._thoughts = 0
        """Ids of the thoughts so far."""

    def _after_thoughts(self) -> str:
        return "text" if self._lead.free_text else "form"

    def mask(self) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]``."""
        phase = self._phases[-1]
        if phase == "ended":
            return self._stop_bits
        if phase == "thinking":
            assert self._close_bit is not None
            return self._close_bit if self._thoughts + 1 >= self._lead.budget else self._text | self._close_bit
        if phase == "text":
            assert self._opening_bit is not None
            found = self._text | self._opening_bit | self._stop_bits
        else:
            found = self._form_mask()
        return found | self._channel_bit if self._channel_bit is not None and not self._tokens else found

    def _form_mask(self) -> np.ndarray:
        found = self._vocabulary.mask(self._matcher, self._size)
        if self._matcher.is_error():  # a bound of time or size, in the midst of an answer
            raise InputError(f"its form became too complex to follow: {said(self._matcher.get_error())}")
        if not self._matcher.is_accepting():
            return found
        return self._stop_bits if self._opening_bit is not None and not self._another() else found | self._stop_bits

    def _another(self) -> bool:
        """Whether one more call may begin: there must be room for four like the longest, so that it will be whole."""
        begins = [i for i, token in enumerate(self._tokens) if token == self._lead.opening]
        longest = max(end - start for start, end in pairwise([*begins, len(self._tokens)]))
        return self._limit - len(self._tokens) >= ROOM * longest

    def advance(self, token: int) -> None:
        """Take in an id. Raises InputError for one that may not follow."""
        phase, after = self._phases[-1], self._phases[-1]
        if phase == "ended":
            pass
        elif phase == "thinking":
            self._thoughts += 1
            after = self._after_thoughts() if token == self._close else phase
        elif self._may_think and not self._tokens and token == self._channel:
            self._thoughts, after = 1, "thinking"
        elif token in self._stops and (phase == "text" or self._matcher.is_accepting()):
            after = "ended"
        elif phase == "form" or token == self._lead.opening:
            after = "form"
            if not self._matcher.consume_token(token):
                raise InputError(f"id {token} may not follow")
        self._tokens.append(token)
        self._phases.append(after)

    def rollback(self, tokens: int) -> None:
        """Take back the last ids."""
        keep = len(self._tokens) - tokens
        forms = 0
        for i in range(keep, len(self._tokens)):
            before, after = self._phases[i], self._phases[i + 1]
            forms += after == "form" and (before == "form" or self._tokens[i] == self._lead.opening)
            self._thoughts -= before == "thinking" or (after == "thinking" and before != "thinking")
        if forms and not self._matcher.rollback(forms):
            raise InputError(f"{forms} ids cannot be taken back: {said(self._matcher.get_error())}")
        del self._tokens[keep:], self._phases[keep + 1 :]

    def forced(self) -> Sequence[int]:
        """The ids that must follow."""
        phase = self._phases[-1]
        if phase == "thinking":
            return [self._close] if self._thoughts + 1 >= self._lead.budget else []
        if phase != "form" or (self._may_think and not self._tokens) or self._matcher.is_accepting():
            return []
        return list(self._matcher.compute_ff_tokens())
