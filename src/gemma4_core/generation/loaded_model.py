"""``LoadedModel``: what ``load_pretrained`` returns. Ids or text in, logits, tokens or text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from tinygrad import Tensor

from gemma4_core.checkpoint.model_weights import save_weights
from gemma4_core.contracts import Constraint
from gemma4_core.engine.drafting import LONGEST
from gemma4_core.engine.forward import Logits, forward_ids, forward_inside
from gemma4_core.engine.sequence import LogitsProcessor
from gemma4_core.errors import InputError
from gemma4_core.generation.adapters import AdapterSwitch
from gemma4_core.generation.answers import Answer
from gemma4_core.generation.embedding import embed
from gemma4_core.generation.html import model_table
from gemma4_core.generation.keywords import check_keywords, feature_keywords, media_keywords
from gemma4_core.generation.requests import Request
from gemma4_core.generation.scheduler import answer_all
from gemma4_core.generation.stream import AnswerStream, answer_stream
from gemma4_core.generation.text_model import TextModel
from gemma4_core.generation.tokens import CheckedPrompt, check_prompt, run
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.layer_outputs import LayerOutputs
from gemma4_core.processing.inputs import PreparedInputs


class LoadedModel(TextModel):
    """A model with everything that is needed to use it.

    A subclass, not a wrapper: all that takes a ``GemmaModel`` (training, transforms, towers, caches) takes a loaded one
    as it is, and there is one set of weights, revisions and graphs, whichever name a caller holds it by.
    """

    def __repr__(self) -> str:
        text = self.config.text_config
        return (f"GemmaModel({text.num_hidden_layers} layers, hidden {text.hidden_size}, {self.format_name} on "
                f"{self.device_name}, towers: {', '.join(self.towers) or 'none'})")

    # ------------------------------------------------------------------------------------------- ids

    @overload
    def forward_ids(
        self, ids: Any, cache: GemmaCache | None = None, *, return_hidden: Literal[False] = False,
        return_attention: Literal[False] = False, **media: Any,
    ) -> Logits: ...

    @overload
    def forward_ids(
        self, ids: Any, cache: GemmaCache | None = None, *, return_hidden: Literal[True],
        return_attention: bool = False, **media: Any,
    ) -> tuple[Tensor, GemmaCache | None, LayerOutputs]: ...

    @overload
    def forward_ids(
        self, ids: Any, cache: GemmaCache | None = None, *, return_hidden: bool = False,
        return_attention: Literal[True], **media: Any,
    ) -> tuple[Tensor, GemmaCache | None, LayerOutputs]: ...

    def forward_ids(
        self, ids: Any, cache: GemmaCache | None = None, *, return_hidden: bool = False, return_attention: bool = False,
        **media: Any,
    ) -> Logits | tuple[Tensor, GemmaCache | None, LayerOutputs]:
        """Logits fp32 ``[B, T, vocab]`` for every position given, and the cache (None without one).

        A flat list of ids is one row. Media keywords take what the processor returned, in the same call as their
        placeholders. Without a cache gradients of what is made of the logits reach every weight that trains, with
        ``loss.gradient(weight)`` or ``loss.backward()``; take them before the logits are realized, as tinygrad wants
        it. With a cache nothing is differentiated: gradients are zero. Raises InputError for ids outside the
        vocabulary, a context that does not hold them, and media that do not match their placeholders.

        With ``return_hidden`` or ``return_attention`` a third value comes back, whose ``hidden`` is ``[layers + 1, B,
        T, H]`` (the scaled embeddings, then every layer's output, the last one after the final norm) and whose
        ``attention`` has ``[B, heads, T, S]`` for each layer. They are made by the portable operations; without a cache
        gradients flow from them too, before they are realized.
        """
        if return_hidden or return_attention:
            return forward_inside(self.engine, ids, cache, media, return_hidden, return_attention)
        return forward_ids(self.engine, ids, cache, media)

    def generate(
        self,
        ids: Any,
        max_new_tokens: int | None = None,
        *,
        cache: GemmaCache | None = None,
        stop_ids: Sequence[int] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        constraint: Constraint | Mapping[str, Any] | None = None,
        thinking_budget: int | None = None,
        draft: str | None = None,
        num_draft_tokens: int = LONGEST,
        adapter: str | None = None,
        **media: Any,
    ) -> Iterator[int]:
        """Yield the ids that follow a prompt of ids, one by one.

        Unlike ``gemma4 generate`` this is greedy unless a temperature is given (the command takes
        generation_config.json), and it knows neither text nor chat template: ``stream_generate`` does.

        Args:
            ids: the prompt, one row of token ids: a list, an array or a tensor.
            max_new_tokens: most ids to yield; None is up to the end of the context.
            cache: of ``make_cache``; what it holds of the prompt already is not run again.
            stop_ids: ids that end the answer and are not yielded; None is ``stop_ids`` of the model.
            temperature: 0 is greedy; above 0 samples.
            top_k: sample among the so many likeliest ids; None or 0 is off.
            top_p: sample among the likeliest ids of this total probability; None or 1 is off.
            min_p: sample among ids at least this likely, relative to the likeliest; None or 0 is off.
            repetition_penalty: divides the scores of ids that occurred; None or 1 is off.
            seed: makes sampled ids the same each time; None draws one.
            media: what the processor returned for images and sound, by the keywords of ``forward_ids``.
            presence_penalty, frequency_penalty, logit_bias, ignore_eos, logits_processor, constraint,
                thinking_budget, draft, num_draft_tokens, adapter: as for ``Request``.

        Raises:
            InputError: before anything runs, for ids outside the vocabulary, values outside their bounds, media that
                do not match, and an unknown keyword, naming the nearest.

        ::

            ids = model.processor.prepare_inputs("Once upon a time").input_ids
            print(model.tokenizer.decode(list(model.generate(ids, max_new_tokens=32))))
        """
        check_keywords(LoadedModel.generate, media, feature_keywords())
        request = Request(
            prompt_tokens=(), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, seed=seed, stop_ids=stop_ids,
            ignore_eos=ignore_eos, logits_processor=logits_processor, constraint=constraint,
            thinking_budget=thinking_budget, draft=draft, num_draft_tokens=num_draft_tokens, adapter=adapter,
        )
        prompt = self._checked(request, ids, max_new_tokens, cache, media)
        return (token.id for token in run(self.engine, prompt))

    def _checked(
        self, request: Request, ids: Any, max_new_tokens: int | None, cache: GemmaCache | None, media: Mapping[str, Any]
    ) -> CheckedPrompt:
        """A request's sequence, checked, and the cache that it runs in."""
        AdapterSwitch(self).check(request.adapter)
        drafting = request.drafting(self)
        made = check_prompt(self, ids, max_new_tokens, cache, media, request.choices(), request.ends(self), drafting)
        sequence = made.sequence
        sequence.choices.constraint = request.constrained(self, sequence.ids, sequence.limit)
        sequence.adapter = request.adapter
        return made

    # ------------------------------------------------------------------------------------------- text

    def stream_generate(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]] | PreparedInputs | None = None,
        max_new_tokens: int | None = None,
        *,
        prompt_tokens: Sequence[int] | None = None,
        cache: GemmaCache | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        literal: bool = False,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
        top_logprobs: int = 0,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        constraint: Constraint | Mapping[str, Any] | None = None,
        thinking_budget: int | None = None,
        draft: str | None = None,
        num_draft_tokens: int = LONGEST,
        adapter: str | None = None,
        **media: Any,
    ) -> AnswerStream:
        """Yield an answer as text, part by part: ``text``, ``kind`` (``text``, ``thinking``, ``tool_call``), ``token``,
        ``logprob``, and on the last part ``finish_reason`` and ``stats``.

        A ``str`` is a raw prompt, which the model goes on with; a list of messages goes through the folder's chat
        template. The command ``gemma4 generate`` always uses the template where there is one, unless ``--raw`` is
        given, and takes its sampling from generation_config.json; this is greedy unless a temperature is given.
        Of the parts that one token completes only the first carries it; without a tokenizer parts have no text.

        Args:
            prompt_or_messages: text, messages such as ``[{"role": "user", "content": "Hello"}]``, or what
                ``processor.prepare_inputs`` made of either.
            max_new_tokens: most tokens of the answer; None is up to the end of the context.
            prompt_tokens: token ids in place of text or messages; they need no tokenizer.
            cache, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids: as for ``generate``.
            stop: strings that end the answer and are left out of it.
            tools: declarations of tools that the model may call; calls in other spellings than its own are found too.
            thinking: lets the template make the model think first.
            literal: special tokens that are spelt in the prompt, in messages or in tools are text.
            presence_penalty, frequency_penalty, logit_bias, ignore_eos, top_logprobs, logits_processor, constraint,
                thinking_budget, draft, num_draft_tokens, adapter: as for ``Request``.
            media: files, images or arrays by each modality's keyword, such as ``images=[…]`` and ``audio=[…]``, and
                the options of modalities, such as ``image_tokens``.

        Returns:
            an iterator of parts, whose ``stats`` tell counts and speeds at any time.

        Raises:
            InputError, TokenizerError: before anything runs, also for an unknown keyword, naming the nearest.
        """
        check_keywords(LoadedModel.stream_generate, media, media_keywords())
        if (prompt_or_messages is None) == (prompt_tokens is None):
            raise InputError("give exactly one of prompt_or_messages and prompt_tokens")
        request = Request.of(
            prompt_or_messages, prompt_tokens=prompt_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, seed=seed, stop=stop, stop_ids=stop_ids,
            ignore_eos=ignore_eos, tools=tools, thinking=thinking, literal=literal, top_logprobs=top_logprobs,
            logits_processor=logits_processor, constraint=constraint, thinking_budget=thinking_budget, draft=draft,
            num_draft_tokens=num_draft_tokens, adapter=adapter, **media,
        )
        request.check_text(self)
        ids, features = request.inputs(self)
        prompt = self._checked(request, ids, max_new_tokens, cache, features)
        return answer_stream(self.engine, prompt, request.parts(self, prompt.sequence.ids), self.load_seconds)

    def answer_all(
        self, requests: Iterable[Request | str | Sequence[Mapping[str, Any]]], *, parallel: int | str = 8,
        context: int | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the answers to many requests as they finish, each with the number of its request.

        ::

            for index, answer in model.answer_all(["One,", Request(messages=[…], temperature=0.7)], parallel=8):
                print(index, answer.text)

        Args:
            requests: ``Request`` objects, raw prompts or lists of messages. They are taken as they are needed.
            parallel: how many run at once, or ``auto``: as many as fit into free memory.
            context: positions for each prompt with its answer; None is the model's context, at most 8192.

        Raises:
            InputError: for ``parallel`` or ``context``. A bad request has its ``error`` in its answer.
        """
        return answer_all(self, requests, parallel, context)

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """One vector for each text: the mean of the last hidden states over its tokens, BOS included, of length 1.

        Args:
            texts: raw texts, or one.

        Returns:
            fp32 ``[n, H]``.

        Raises:
            InputError, TokenizerError: no tokenizer, an empty text, or one that is longer than the context.
        """
        return embed(self.engine, self.processor, texts)

    # ------------------------------------------------------------------------------------------- saving, showing

    def save_pretrained(self, folder: Path | str, format: str | None = None) -> Path:
        """Write the model as a checkpoint folder that opens like any other; the folder.

        Args:
            folder: absent, empty, or one that holds a checkpoint and nothing else, which is replaced whole.
            format: name of a checkpoint format plugin such as ``int8``; None is ordinary weights in the type that the
                model computes in.

        Raises:
            PluginError: no such format.
            CheckpointError: the folder cannot be written or holds other files; nothing has changed there.
        """
        return save_weights(self, folder, format)

    def _repr_html_(self) -> str:
        return model_table(self, {"format": self.format_name, "device": self.device_name})

