"""``GemmaMultimodalProcessor``: prompts and media in, token ids and plain arrays out. Needs no weights.

It knows no modality by name: placeholders, files, options and features are those of the modality plugins whose
towers the folder's config declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.contracts import Context, MediaProcessor, ModalityTower, PreparedMedia, Tokenizer
from gemma4_core.errors import Gemma4Error, InputError, TokenizerError
from gemma4_core.plugins import registry
from gemma4_core.plugins.options import check_options, plugin_name
from gemma4_core.plugins.origin import nearest
from gemma4_core.processing.expand import (
    MediaTokenizer,
    check_counts,
    check_soft_tokens,
    expand_ids,
    expand_texts,
    place_tags,
    place_text,
)
from gemma4_core.processing.inputs import Medium, PreparedInputs, Rendered
from gemma4_core.processing.media_arguments import as_list, fingerprint, is_ids, weight
from gemma4_core.processing.media_cache import BoundedCache
from gemma4_core.processing.messages import OPEN, as_text, kind, place_parts, place_tag_parts, read_messages
from gemma4_core.processing.modalities import select_modalities
from gemma4_core.processing.sources import MediaSource, resolve, shown
from gemma4_core.text import ChatTemplate
from gemma4_core.text.literal import LiteralText
from gemma4_core.text.messages import PART_TYPES, plain_data, template_messages, template_variables
from gemma4_core.text.tools import tool_declarations

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig

CACHED_MEDIA, CACHED_BYTES = 64, 512 << 20
"""Bounds of the loaded media that a processor caches for later turns of a chat."""


@dataclass
class _Request:
    """What one call asks for, sorted out."""

    media: dict[str, list[Any]]
    """Given media by modality name."""
    options: dict[str, Any]


class GemmaMultimodalProcessor:
    """Prepares prompts for one checkpoint folder.

        processor = GemmaMultimodalProcessor.from_pretrained("path/to/checkpoint")
        prepared = processor.prepare_inputs("Describe <|image|>.", images=["photo.jpg"])
        logits, cache = model.forward_ids(prepared.input_ids, **prepared.features)
    """

    def __init__(
        self,
        context: Context,
        specs: Sequence[ModalityTower],
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        assert context.config is not None
        self.context, self.specs, self.template = context, list(specs), template
        self.options = {key: value for key, value in (options or {}).items() if value is not None}
        self.tokenizer = MediaTokenizer(tokenizer, context.config, self.specs)
        self._processors: dict[object, MediaProcessor] = {}
        self._media_cache: BoundedCache[Any] = BoundedCache(CACHED_MEDIA, CACHED_BYTES, weight)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path,
        tokenizer: str = "auto",
        modalities: Sequence[str] | str | None = None,
        **options: Any,
    ) -> GemmaMultimodalProcessor:
        """The processor of a checkpoint folder (or hub name, or alias).

        ``modalities`` limits which media it takes, as for ``load_pretrained``. ``options`` are those of the modality
        plugins, such as ``image_tokens=560`` and ``audio_truncate=True``, and ``allow_urls=True``, without which URLs
        are not fetched. Raises ConfigError, TokenizerError and PluginError.
        """
        context = read_context(resolve_folder(folder_or_name))
        specs = select_modalities(registry.matching("modality", context), context, modalities)
        loaded = registry.select("tokenizer", context, plugin_name(tokenizer)).load(context)
        check_options(options, [option for spec in registry.modalities.values() for option in spec.options])
        return cls(context, specs, loaded, ChatTemplate.load(context), options)

    def prepare_inputs(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]] | Sequence[int],
        *,
        images: Any = None,
        audio: Any = None,
        videos: Any = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        literal: bool = False,
        **more: Any,
    ) -> PreparedInputs:
        """Token ids and features of a prompt with its media.

        A ``str`` is a raw prompt: its special tokens are recognised, BOS is added where missing. A list of messages
        goes through the chat template; content parts such as ``{"type": "image", "path": …}`` carry media in place.
        A list of ids holds one soft-token id per medium (or all of them).

        Args:
            images: media of each kind, one or a list: paths, bytes, file objects, ``-``, library objects, arrays. They
                fill the placeholders in order, or tags such as ``<image>`` where the text has those. Where neither is
                written they go before or after the text, as the modality says. ``audio``, ``videos`` and ``more``
                likewise.
            tools: tool declarations for the template.
            thinking: whether the template lets the model think.
            add_generation_prompt: whether the template opens the model's turn.
            chat_template_kwargs: further variables of the template; ``enable_thinking`` is stronger than ``thinking``.
            literal: whether special tokens that are spelt in the prompt are text: in a raw prompt, in messages and in
                tools. Placeholders of media that are given stay placeholders in a raw prompt and in users' messages;
                whole thoughts and tool calls in an assistant's text stay what they are.
            more: media of other modalities, and options of modalities for this call, such as ``image_tokens``.

        Raises:
            InputError: media cannot be read, or do not match their placeholders in number.
            TokenizerError: the folder has no tokenizer or no template for this prompt.
        """
        request = self._request({"images": images, "audio": audio, "videos": videos, **more})
        if is_ids(prompt_or_messages):
            return self._from_ids([int(token) for token in prompt_or_messages], request)  # type: ignore[arg-type]
        if isinstance(prompt_or_messages, str):
            rendered = self._raw(prompt_or_messages, request, literal)
        else:
            variables = {"tools": tools, "thinking": thinking, "add_generation_prompt": add_generation_prompt}
            variables |= template_variables(chat_template_kwargs)
            rendered = self._templated(prompt_or_messages, request, variables, literal)
        return self.tokenized(rendered, [rendered.text])[0]

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False, chat_template_kwargs: Mapping[str, Any] | None = None, **media: Any,
    ) -> Rendered:
        """A whole conversation as literal text, for training: ``tokenized`` makes ids of it. Raises as
        ``prepare_inputs`` does."""
        variables = {"tools": tools, "thinking": thinking, "add_generation_prompt": False}
        variables |= template_variables(chat_template_kwargs)
        return self._templated(messages, self._request(media), variables, True)

    def tokenized(self, rendered: Rendered, pieces: Sequence[str]) -> tuple[PreparedInputs, list[int]]:
        """Ids and features of a rendered prompt, given as one piece of text or several; and how many ids come from
        each piece. Pieces are encoded apart, so that no token reaches from one into the next."""
        prepared = self._prepare(rendered.media, rendered.options)
        expansions = {spec.placeholder: prepared[spec.name].expansions for spec in self.specs if spec.name in prepared}
        encode = (rendered.literal or self.tokenizer).encode
        found = [encode(piece) if piece else [] for piece in expand_texts(pieces, expansions)]
        begin = self._config.bos_token_id
        if begin is not None and next((ids[0] for ids in found if ids), None) != begin:
            found[0] = [begin, *found[0]]
        return self._result([i for ids in found for i in ids], prepared, rendered.media), [len(ids) for ids in found]

    def features(self, sources: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Features by ``forward_ids`` keyword of media by modality, as ``PreparedInputs.sources`` has them; those of
        several prompts one after another make a batch. Raises InputError."""
        made = self._prepare(sources, self.options).values()
        return {keyword: array for prepared in made for keyword, array in prepared.features.items()}

    def load(self, modality: str, source: Any, **options: Any) -> Any:
        """Read one medium, or take it from the cache. Raises InputError. Useful to check a file before a model is
        loaded."""
        spec = next((spec for spec in self.specs if spec.name == modality), None)
        if spec is None:
            raise InputError(f"modality {modality} is not loaded; loaded: {self._loaded_names()}")
        return self._load(spec, source, self.options | options)

    # ------------------------------------------------------------------------------------------- the request

    @property
    def _config(self) -> GemmaConfig:
        assert self.context.config is not None
        return self.context.config

    def _loaded_names(self) -> str:
        return ", ".join(["text", *(spec.name for spec in self.specs)])

    def _request(self, given: Mapping[str, Any]) -> _Request:
        """Sort keyword arguments into media and options."""
        takers = {spec.media_keyword: spec for spec in self.specs}
        options = {option.keyword for spec in self.specs for option in spec.options} | {"allow_urls"}
        request = _Request({}, dict(self.options))
        for name, value in given.items():
            if name in options:
                request.options[name] = value
            elif value is None or (isinstance(value, list | tuple) and not value):
                continue
            elif name in takers:
                request.media[takers[name].name] = as_list(value)
            else:
                raise InputError(self._untaken(name, value))
        return request

    def _untaken(self, name: str, value: Any) -> str:
        """Why nothing takes this argument, in a sentence."""
        first = value[0] if isinstance(value, list | tuple) and value else value
        label = name if name.isidentifier() and len(name) < 60 else shown(name)
        what = f"{label} {shown(str(first))}" if isinstance(first, str | Path) else label
        for spec in registry.modalities.values():
            if spec.media_keyword == name:
                return f"{what}: {self._absent(spec)}"
        known = [spec.media_keyword for spec in registry.modalities.values()]
        known += [option.keyword for spec in self.specs for option in spec.options]
        return (f"{what}: no installed modality plugin takes it{nearest(name, known)}; loaded: {self._loaded_names()} "
                "(gemma4 plugins lists what is installed)")

    def _absent(self, spec: ModalityTower) -> str:
        if any(found.name == spec.name for found in registry.matching("modality", self.context)):
            return f"the modality {spec.name} is not loaded; add it to --modality (modalities)"
        return f"this model has no {spec.name} tower (see config.json in {self.context.path})"

    def _refuse_absent(self, text: str) -> None:
        """Raise InputError where a text holds the placeholder of a modality that is installed but not loaded."""
        loaded = {spec.placeholder for spec in self.specs}
        for spec in registry.modalities.values():
            if spec.placeholder not in loaded and spec.placeholder in text:
                raise InputError(f"the prompt holds {spec.placeholder}: {self._absent(spec)}")

    # ------------------------------------------------------------------------------------------- prompts

    def _raw(self, text: str, request: _Request, literal: bool) -> Rendered:
        special = self.tokenizer.special_tokens
        begin = next((name for name, number in special.items() if number == self._config.bos_token_id), None)
        hidden = LiteralText(self.tokenizer, text) if literal else None
        for spec in self.specs:
            text = place_tags(text, spec, len(request.media.get(spec.name, [])))
        if hidden is not None:
            text = hidden.hide(text, [spec.placeholder for spec in self.specs if request.media.get(spec.name)])
        self._refuse_absent(text)
        for spec in self.specs:
            given, written = request.media.get(spec.name, []), text.count(spec.placeholder)
            if not written:
                text = place_text(text, spec, len(given), begin)
            else:
                check_counts(spec, written, len(given))
        return Rendered(text, request.media, request.options, hidden)

    def _templated(
        self, messages: Any, request: _Request, variables: Mapping[str, Any], literal: bool
    ) -> Rendered:
        if self.template is None:
            raise TokenizerError(f"{self.context.path}: has no chat template; give a raw prompt (--raw)")
        filled = [spec for spec in self.specs if request.media.get(spec.name)]
        talk = read_messages(messages, self.specs, filled if literal else None)
        media: dict[str, list[Any]] = {}
        for spec in self.specs:
            given = request.media.get(spec.name, [])
            open_places = sum(item is OPEN for item in talk.media.get(spec.name, []))
            if given and not open_places:
                if not place_tag_parts(talk, spec, len(given)):
                    place_parts(talk, spec, len(given))
            else:
                check_counts(spec, open_places, len(given))
            rest = iter(given)
            media[spec.name] = [next(rest) if item is OPEN else item for item in talk.media.get(spec.name, [])]
        strange = [spec for spec in self.specs if kind(spec) not in PART_TYPES]
        said = as_text(talk.messages, strange)
        hidden = None
        if literal:
            said, tools = template_messages(said), tool_declarations(variables["tools"])
            variables = plain_data({**variables, "tools": tools})
            try:
                hidden = LiteralText(self.tokenizer, [said, variables, list(self.template.texts.values())])
                said = hidden.hide_messages(said, [spec.placeholder for spec in (*filled, *strange)])
                variables = hidden.hide_data(variables)
            except RecursionError:
                raise InputError("messages or tools are nested too deeply for a chat template") from None
        return self._rendered(Rendered("", media, request.options, hidden, said), variables)

    def _rendered(self, prompt: Rendered, variables: Mapping[str, Any]) -> Rendered:
        """The prompt with its text. Parts of modalities that the template does not know go in as text."""
        template = self.template
        assert template is not None

        def again(messages: Sequence[Mapping[str, Any]], opening: bool) -> str:
            return template.render(messages, **{**variables, "add_generation_prompt": opening})

        said = prompt.messages
        text = template.render(said, **variables)
        unknown = [spec for spec in self.specs if text.count(spec.placeholder) != len(prompt.media[spec.name])]
        if unknown:
            said = as_text(said, unknown)
            text = template.render(said, **variables)
        for spec in unknown:
            if text.count(spec.placeholder) != len(prompt.media[spec.name]):
                raise InputError(f"the chat template of {self.context.path} leaves {text.count(spec.placeholder)} of "
                                 f"{len(prompt.media[spec.name])} {kind(spec)} parts; put them into user messages")
        self._refuse_absent(text)
        return replace(prompt, text=text, messages=said, again=again)

    def _from_ids(self, ids: list[int], request: _Request) -> PreparedInputs:
        """Ids with one placeholder per medium, or expanded already."""
        prepared = self._prepare(request.media, request.options)
        expansions: dict[int, list[list[int]]] = {}
        for spec in self.specs:
            soft = spec.soft_token_id(self._config)
            count, made = ids.count(soft), prepared.get(spec.name)
            if made is None or count == sum(made.soft_tokens):
                continue
            check_counts(spec, count, len(made.soft_tokens))
            expansions[soft] = [self.tokenizer.encode(text) for text in made.expansions]
        return self._result(expand_ids(ids, expansions), prepared, request.media)

    # ------------------------------------------------------------------------------------------- media

    def _prepare(self, media: Mapping[str, Sequence[Any]], options: Mapping[str, Any]) -> dict[str, PreparedMedia]:
        prepared = {}
        for spec in self.specs:
            items = [self._load(spec, source, options) for source in media.get(spec.name, [])]
            if items:
                prepared[spec.name] = self._processor(spec, options).prepare(items)
        return prepared

    def _processor(self, spec: ModalityTower, options: Mapping[str, Any]) -> MediaProcessor:
        wanted = {option.keyword: options.get(option.keyword, option.default) for option in spec.options}
        wanted["allow_urls"] = bool(options.get("allow_urls", False))
        key = (spec.name, tuple(sorted((name, repr(value)) for name, value in wanted.items())))
        if key not in self._processors:
            self._processors[key] = spec.processor(self.context, wanted)
        return self._processors[key]

    def _load(self, spec: ModalityTower, source: Any, options: Mapping[str, Any]) -> Any:
        processor = self._processor(spec, options)
        source = resolve(source, bool(options.get("allow_urls", False)))
        content = fingerprint(source)
        key = None if content is None else (spec.name, id(processor), content)

        def load() -> Any:
            try:
                return processor.load(source)
            except Gemma4Error:
                raise
            except Exception as error:
                name = str(source) if isinstance(source, MediaSource) else type(source).__name__
                reason = " ".join(str(error).split())[:160]
                raise InputError(f"{name}: modality {spec.name} failed to read it: {type(error).__name__}: {reason}") \
                    from error

        return self._media_cache.get(key, load)

    def _result(
        self, ids: list[int], prepared: Mapping[str, PreparedMedia], sources: Mapping[str, Sequence[Any]]
    ) -> PreparedInputs:
        features: dict[str, np.ndarray] = {}
        media: list[Medium] = []
        for spec in self.specs:
            made = prepared.get(spec.name)
            counts = list(made.soft_tokens) if made is not None else []
            check_soft_tokens(spec, ids.count(spec.soft_token_id(self._config)), sum(counts))
            if made is None:
                continue
            features |= made.features
            lengths: list[float | None] = [*made.seconds] or [None] * len(counts)
            media += [Medium(spec.name, count, length) for count, length in zip(counts, lengths, strict=True)]
        keywords = frozenset(keyword for spec in self.specs for keyword in spec.keywords)
        held = {name: tuple(items) for name, items in sources.items() if items}
        return PreparedInputs(ids, features, tuple(media), keywords, held)
