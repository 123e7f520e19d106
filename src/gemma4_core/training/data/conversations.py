"""Conversations as ids, and which of them the model says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.text.messages import REASONING_KEYS, template_variables
from gemma4_core.training.data.forms import ANSWERS
from gemma4_core.training.data.turns import (
    THOUGHT_BEGIN,
    THOUGHT_END,
    Span,
    Turns,
    owned,
    pieces_of,
    turns_of,
)

if TYPE_CHECKING:
    from gemma4_core.processing.inputs import PreparedInputs, Rendered
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

READS_REASONING = re.compile(rf"[.'\"]({'|'.join(REASONING_KEYS)})\b")
"""A template's use of a message's reasoning, such as ``message.reasoning``."""
MOST_MESSAGES = 512
"""Of a conversation through a template without marks, which is rendered again for each answer."""
Encoded = tuple[np.ndarray, np.ndarray, "PreparedInputs"]


class Conversations:
    """Makes ids and masks of messages through the chat template of one processor."""

    def __init__(self, processor: GemmaMultimodalProcessor, mask_prompt: bool, thinking: bool) -> None:
        self.processor, self.mask_prompt, self.thinking = processor, mask_prompt, thinking
        self.special = [token for token in processor.tokenizer.special_tokens if token.strip()]
        template = processor.template
        self.template_text = "" if template is None else "\n".join(template.texts.values())
        """All that the template may read, to look for names in."""
        self.ignored: Counter[str] = Counter()
        """Keys of lines that nothing reads."""
        self._turns: dict[str, Turns | None] = {}

    def encoded(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, variables: Mapping[str, Any] | None,
        media: Mapping[str, Any],
    ) -> Encoded:
        """Ids int32 ``[T]``, which of them are trained on, bool ``[T]``, and what the processor made.

        Trained on is what assistant messages say whose ``weight`` is not 0; without masks everything but what those of
        weight 0 say.
        """
        given = {"thinking": self.thinking, **template_variables(variables)}
        weights = [message.get("weight", 1) for message in messages]
        plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        options = {"enable_thinking": given["thinking"], **(variables or {})}
        rendered = self.processor.render(plain, tools=tools, chat_template_kwargs=options, **media)
        turns = self._turns_of(given)
        spans = turns.spoken(rendered.text) if turns is not None else self._answers(rendered, weights)
        thoughts = self._lost_thoughts(rendered, turns is not None)
        told = [weight for message, weight in zip(messages, weights, strict=True) if message["role"] in ANSWERS]
        if turns is not None and ((0 in told and 1 in told) or thoughts):
            spans = owned(rendered, spans, self.special)
        if not spans and self.mask_prompt:
            raise InputError("the assistant's turns were not found in what the chat template writes; without masks "
                             "(--no-mask-prompt) they can be trained on")
        trained = [0 not in told if span.message is None else weights[span.message] == 1 for span in spans]
        pieces = pieces_of(rendered.text, spans, trained, thoughts, not self.mask_prompt)
        prepared, counts = self.processor.tokenized(rendered, [text for text, _ in pieces])
        mask = np.repeat([own for _, own in pieces], counts)
        return np.array(prepared.input_ids, np.int32), mask, prepared

    def _turns_of(self, variables: Mapping[str, Any]) -> Turns | None:
        """How the chat template marks the model's turns when it sees these variables."""
        key = json.dumps(variables, sort_keys=True, default=str)
        if key not in self._turns:
            assert self.processor.template is not None
            self._turns[key] = turns_of(self.processor.template, self.special, **variables)
        return self._turns[key]

    def _lost_thoughts(self, rendered: Rendered, marked: bool) -> dict[int, str]:
        """Reasoning after the last user message that the template did not write, as the model writes it. Where it
        cannot be put in its place, for want of marks or tokens, it is counted as ignored."""
        knows = READS_REASONING.search(self.template_text) is not None
        last = max((i for i, message in enumerate(rendered.messages) if message["role"] == "user"), default=-1)
        lost = {
            index: f"{THOUGHT_BEGIN}thought\n{message['reasoning_content'].strip()}\n{THOUGHT_END}"
            for index, message in enumerate(rendered.messages)
            if index > last and message["role"] in ANSWERS and isinstance(message.get("reasoning_content"), str)
            and not (knows and message["reasoning_content"].strip() in rendered.text)
        }
        if lost and not (marked and {THOUGHT_BEGIN, THOUGHT_END} <= set(self.special)):
            self.ignored["messages[].reasoning_content"] += 1
            return {}
        return lost

    def _answers(self, rendered: Rendered, weights: Sequence[int]) -> list[Span]:
        """Each answer behind its generation prompt, for a template without marks. Raises InputError where the template
        writes a conversation in another way when it goes on."""
        assert rendered.again is not None
        if len(rendered.messages) > MOST_MESSAGES:
            raise InputError(f"the chat template does not mark turns, and more than {MOST_MESSAGES} messages are not "
                             "masked without marks; split the conversation")
        spans: list[Span] = []
        for index, message in enumerate(rendered.messages):
            if message["role"] not in ANSWERS or not (self.mask_prompt or weights[index] == 0):
                continue
            prompt = rendered.again(rendered.messages[:index], True) if index else ""
            answered = rendered.again(rendered.messages[: index + 1], False)
            if not (rendered.text.startswith(answered) and answered.startswith(prompt)):
                raise InputError("the chat template writes an answered prompt in another way; use --no-mask-prompt")
            spans.append(Span(len(prompt), len(answered), index))
        return spans
