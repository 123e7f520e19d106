"""``Request``: a prompt with everything that is asked of its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.contracts import AnswerContext, Constraint
from gemma4_core.engine.constraining import GuardedConstraint
from gemma4_core.engine.drafting import LONGEST, Drafting
from gemma4_core.engine.sequence import Choices, LogitsProcessor
from gemma4_core.engine.thinking_budget import ThinkingBudget
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.generation.constraints import build_constraint
from gemma4_core.generation.keywords import check_keywords, media_keywords
from gemma4_core.generation.parts import AnswerParts, NoText
from gemma4_core.generation.sampling import Sampling
from gemma4_core.plugins import registry
from gemma4_core.processing.inputs import PreparedInputs
from gemma4_core.text import AnswerSplitter, ControlTokens, StopStrings, has_text
from gemma4_core.text.tools import tool_declarations

if TYPE_CHECKING:
    from gemma4_core.generation.text_model import TextModel

MOST_TOP_LOGPROBS = 20
MOST_ANSWERS = 128
LONGEST_THOUGHTS = 1 << 27


class Request:
    """One prompt and what is asked of its answer: exactly one of ``prompt``, ``messages`` and ``prompt_tokens``.

    ::

        Request(messages=[{"role": "user", "content": "Hello"}], max_new_tokens=64, temperature=0.7, seed=1)

    Args:
        prompt: raw text, which the model goes on with.
        messages: a conversation, which goes through the chat template.
        prompt_tokens: token ids; they need no tokenizer.
        max_new_tokens: most tokens of the answer; None is as many as the context has room for.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: as for ``generate``.
        presence_penalty, frequency_penalty: -2 to 2, taken off the logit of an id that the answer holds, once or each
            time.
        logit_bias: what is added to the logits of some ids.
        stop: strings that end the answer and are left out of it.
        stop_ids: ids that end it; None is the model's own.
        ignore_eos: go on past the model's own stop ids.
        tools, thinking, literal: as for ``stream_generate``.
        top_logprobs: how many of the likeliest ids are told for each token, 0 to 20.
        logits_processor: a callable, or several, of the ids so far and fp32 logits ``[V]`` that returns the logits to
            choose from. It runs on the host for each token, which is slow.
        constraint: a ``Constraint``, or a specification that an installed backend builds one from.
        thinking_budget: most tokens of the answer's thoughts; None is no bound of their own.
        draft: name of a drafter; the answer is the same with and without.
        num_draft_tokens: most tokens that it proposes at once.
        adapter: name of one of the model's adapters; None is the model as it was loaded.
        n: how many answers.
        salt: beginnings of prompts are shared among requests of equal salt alone.
        deadline: seconds after which the answer is ended.
        media: files, images or arrays by each modality's keyword, such as ``images=[…]``, and modalities' options.

    Raises:
        InputError: for what contradicts itself or lies outside its bounds, and for an unknown keyword, naming the
            nearest. What the model cannot run comes back as the answer's ``error``.
    """

    def __init__(
        self,
        prompt: str | PreparedInputs | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        prompt_tokens: Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        ignore_eos: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        literal: bool = False,
        top_logprobs: int = 0,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        constraint: Constraint | Mapping[str, Any] | None = None,
        thinking_budget: int | None = None,
        draft: str | None = None,
        num_draft_tokens: int = LONGEST,
        adapter: str | None = None,
        n: int = 1,
        salt: str = "",
        deadline: float | None = None,
        **media: Any,
    ) -> None:
        if sum(value is not None for value in (prompt, messages, prompt_tokens)) != 1:
            raise InputError("give exactly one of prompt, messages and prompt_tokens")
        if media:
            check_keywords(Request.__init__, media, media_keywords(), "Request")
        self.prompt, self.messages, self.prompt_tokens = prompt, messages, prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.sampling = Sampling.of(
            temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, seed=seed,
        )
        self.logit_bias = checked_bias(logit_bias)
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        StopStrings(self.stop)
        self.stop_ids, self.ignore_eos = None if stop_ids is None else checked_ids(stop_ids), ignore_eos
        self.tools, self.thinking, self.literal = tools, thinking, literal
        self.top_logprobs = whole("top_logprobs", top_logprobs, 0, MOST_TOP_LOGPROBS)
        several = isinstance(logits_processor, Sequence)
        given: Sequence[Any] = logits_processor if several else [logits_processor]  # type: ignore[assignment]
        self.processors = [processor for processor in given if processor is not None]
        for processor in self.processors:
            if not callable(processor):
                raise InputError(f"logits_processor {shown(processor)}: must be a callable of ids and logits")
        if not (constraint is None or isinstance(constraint, Mapping) or callable(getattr(constraint, "mask", None))):
            raise InputError(f"constraint {shown(constraint)}: must be a Constraint or a mapping")
        self.constraint = constraint
        if thinking_budget is not None:
            whole("thinking_budget", thinking_budget, 0, LONGEST_THOUGHTS)
        self.thinking_budget = thinking_budget
        self.draft = None if draft in (None, "off") else draft
        self.num_draft_tokens = whole("num_draft_tokens", num_draft_tokens, 1, 64)
        self.adapter, self.n, self.salt = adapter, whole("n", n, 1, MOST_ANSWERS), salt
        if deadline is not None and not (isinstance(deadline, int | float) and deadline > 0):
            raise InputError(f"deadline {shown(deadline)}: must be a number of seconds above 0")
        self.deadline = deadline
        self.media = media

    @classmethod
    def of(cls, prompt: Any, **options: Any) -> Request:
        """A request for text, messages, a prepared prompt or a request, as people give them."""
        if isinstance(prompt, Request):
            return prompt
        if is_ids(prompt):
            raise InputError("prompt_or_messages is a list of token ids: give them as prompt_tokens=")
        raw = prompt is None or isinstance(prompt, str | PreparedInputs)
        return cls(prompt, **options) if raw else cls(messages=prompt, **options)

    def check_text(self, model: TextModel) -> None:
        """Raise InputError where the request needs a tokenizer that the model does not have."""
        ready = self.prompt_tokens is not None or isinstance(self.prompt, PreparedInputs)
        if not has_text(model.tokenizer) and (not ready or self.stop):
            what = f"the stop string {self.stop[0]!r}" if ready else "a prompt of text"
            raise InputError(f"{what} needs a tokenizer, {model.context.path} has none: give token ids "
                             f"(prompt_tokens=, --prompt-tokens)")

    def inputs(self, model: TextModel) -> tuple[Any, Mapping[str, Any]]:
        """Ids and features of the prompt; those of one that is prepared already as they are."""
        if isinstance(self.prompt, PreparedInputs):
            if self.media:
                raise InputError(f"{next(iter(self.media))}: a prepared prompt holds its media already")
            return self.prompt.input_ids, self.prompt.features
        if self.prompt_tokens is not None and not self.media:
            return self.prompt_tokens, {}
        given: Any = self.prompt if self.prompt is not None else self.messages
        rendering: dict[str, Any] = {"tools": self.tools, "thinking": self.thinking, "literal": self.literal}
        source = given if self.prompt_tokens is None else list(self.prompt_tokens)
        made = model.processor.prepare_inputs(source, **rendering, **self.media)
        return made.input_ids, made.features

    def choices(self, number: int = 0) -> Choices:
        """How the tokens of answer ``number`` are chosen, but for its constraint. Further answers count on from the
        seed."""
        made = self.sampling.choices(
            bias=self.logit_bias, processors=list(self.processors), top_logprobs=self.top_logprobs
        )
        made.seed += number
        return made

    def check_constraint(self, model: TextModel) -> None:
        """Build the constraint once, so that what takes time is done, and its faults are known, before the answer's
        turn comes. Raises InputError."""
        if isinstance(self.constraint, Mapping):
            self.constrained(model, ())

    def constrained(self, model: TextModel, ids: Sequence[int], limit: int | None = None) -> GuardedConstraint | None:
        """The constraint of an answer of at most ``limit`` tokens to a prompt. Raises InputError where it cannot be
        built."""
        marks, vocabulary = ControlTokens.of(model.tokenizer), model.config.text_config.vocab_size
        inside = bool(marks.open_channel(ids))
        found = self._form(model, inside, limit)
        opens, closes = marks.channel_open, marks.channel_close
        if self.thinking_budget is not None and opens is not None and closes is not None:
            found = ThinkingBudget(self.thinking_budget, opens, closes, vocabulary, inside, found)
        return None if found is None else GuardedConstraint(found, vocabulary)

    def _form(self, model: TextModel, inside: bool, limit: int | None) -> Constraint | None:
        """The constraint that was given, or that a backend builds; ``inside`` where the prompt ends in a thought."""
        if self.constraint is None or not isinstance(self.constraint, Mapping):
            return self.constraint
        answer = AnswerContext(
            model.config.text_config.vocab_size, tuple(self.ends(model)), tuple(tool_declarations(self.tools) or ()),
            "open" if inside else "allowed" if self.thinking else "none", limit,
        )
        return build_constraint(model.tokenizer, model.context, self.constraint, answer)

    def drafting(self, model: TextModel) -> Drafting | None:
        """The request's drafts. Raises PluginError for an unknown drafter."""
        if self.draft is None:
            return None
        backend = registry.select("drafter", model.context, self.draft)
        values = {option.keyword: model.options.get(option.keyword, option.default) for option in backend.options}
        view = model.engine.view
        return Drafting(backend.name, lambda slots: backend.build(view, slots, values), self.num_draft_tokens)

    def ends(self, model: TextModel) -> tuple[int, ...]:
        """The ids that end the answer."""
        if self.stop_ids is not None:
            return tuple(self.stop_ids)
        return () if self.ignore_eos else model.stop_ids

    def parts(self, model: TextModel, ids: list[int]) -> AnswerParts:
        """What makes text of the answer's tokens."""
        text = has_text(model.tokenizer)
        splitter = AnswerSplitter(model.tokenizer, ids, tools=self.tools) if text else NoText()
        return AnswerParts(splitter, StopStrings(self.stop))


def checked_ids(ids: Any) -> tuple[int, ...]:
    """Stop ids as a tuple. Raises InputError for anything but whole numbers."""
    found = () if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) else tuple(ids)
    whole_numbers = all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in found)
    if not whole_numbers or (not found and ids != () and ids != []):
        raise InputError(f"stop_ids {shown(ids)}: must be token ids")
    return tuple(int(token) for token in found)


def checked_bias(bias: Mapping[int, float] | None) -> dict[int, float]:
    """Biases by id. Raises InputError for anything but whole numbers with finite numbers."""
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise InputError(f"logit_bias {shown(bias)}: must be a mapping from token ids to numbers")
    for token, value in bias.items():
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError(f"logit_bias: {shown(token)} is not a token id")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
            raise InputError(f"logit_bias {token}: {shown(value)} is not a number")
    return {int(token): float(value) for token, value in bias.items()}


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number within bounds. Raises InputError naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} {shown(value)}: must be a whole number from {low} to {high}")
    return value


def is_ids(value: Any) -> bool:
    """Whether somebody gave token ids where text or messages belong."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str | bytes) and value else value
    return isinstance(first, int | np.integer) or isinstance(value, np.ndarray)
