"""``GemmaModel``: an assembled model. Ids in, logits or tokens out; text and media go through ``stream_generate``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop import Ops

from gemma4_core.config import GenerationConfig
from gemma4_core.contracts import Context, ModalityTower, Tokenizer, Tower, TrainedPart
from gemma4_core.model.cache import GemmaCache, StoragePool
from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.ids import check_ids, split
from gemma4_core.model.media import Placed, place
from gemma4_core.ops import Operations
from gemma4_core.weights import Weight

if TYPE_CHECKING:
    from gemma4_core.generation.stream import AnswerStream
    from gemma4_core.model.ple import HostTable
    from gemma4_core.processing.processor import GemmaMultimodalProcessor
    from gemma4_core.text.template import ChatTemplate


class GemmaModel:
    """A model on a device, with everything that was found in its folder.

    ``places`` holds every matrix and expert stack, ``tensors`` every other tensor, both by full checkpoint name.
    """

    def __init__(
        self,
        context: Context,
        device: str,
        dtype: DType,
        operations: Operations,
        places: dict[str, Weight],
        tensors: dict[str, Tensor],
        generation_config: GenerationConfig,
        max_context: int | None = None,
        ple_host: HostTable | None = None,
    ) -> None:
        assert context.config is not None
        self.context, self.config = context, context.config
        self.device, self.dtype, self._operations = device, dtype, operations
        self.places, self.tensors = places, tensors
        self.generation_config = generation_config
        text = self.config.text_config
        self.max_context = min(max_context or text.max_position_embeddings, text.max_position_embeddings)
        self.chunk = operations.chunk(self.max_context)
        """Positions per prefill chunk, and the slack of the rings."""
        self.ple_host = ple_host
        self.text = TextDecoder(text, self.config.text_prefix, places, tensors, dtype)
        self.towers: dict[str, Tower] = {}
        self.tower_specs: list[ModalityTower] = []
        """Descriptions of the loaded towers, in the same order."""
        self.known_specs: list[ModalityTower] = []
        """Descriptions of every tower that the config declares and a plugin serves, loaded or not."""
        self.stored_names: dict[str, str] = {}
        """Names in the checkpoint's files by ours, where they differ."""
        self.unserved: tuple[str, ...] = ()
        """Tensors of the checkpoint that no plugin serves; they are saved as they are."""
        self.tokenizer: Tokenizer | None = None
        self.template: ChatTemplate | None = None
        self.format_name = ""
        self.device_name = ""
        self.load_seconds = 0.0
        self.options: dict[str, Any] = {}
        """Values of the plugins' own options that the model was loaded with."""
        self.trained_part: TrainedPart | None = None
        """What trains and is saved in place of the whole model, such as an adapter."""
        self.pool = StoragePool()
        self.graphs: dict[object, object] = {}
        self.transformed = False
        """Whether a transform changed it."""
        self.weights_revision = self.graphs_revision = 0
        """How often weights changed, and how often they changed such that captured graphs hold the old ones."""
        self.taught = False
        """Whether gradients of ``forward_ids`` were taken: the weights may then change."""
        self._seen: Any = None
        self._engine: Any = None
        self._processor: GemmaMultimodalProcessor | None = None
        suppress = [i for i in generation_config.suppress_tokens if 0 <= i < text.vocab_size]
        self.suppressed: Tensor | None = None
        if suppress:
            marks = np.zeros((1, text.vocab_size), np.bool_)
            marks[0, suppress] = True
            self.suppressed = Tensor(marks, device=device).contiguous().realize()

    def __repr__(self) -> str:
        text = self.config.text_config
        return (
            f"GemmaModel({text.num_hidden_layers} layers, hidden {text.hidden_size}, {self.format_name} on "
            f"{self.device_name or self.device}, towers: {', '.join(self.towers) or 'none'})"
        )

    @property
    def operations(self) -> Operations:
        """What it computes with. Setting another table drops what was captured with the one before."""
        return self._operations

    @operations.setter
    def operations(self, operations: Operations) -> None:
        self._operations = operations
        self.chunk = operations.chunk(self.max_context)
        self.invalidate()

    @property
    def engine(self) -> Any:
        """The captured graphs of this model."""
        if self._engine is None:
            from gemma4_core.engine.engine import Engine

            self._engine = Engine(self)
        return self._engine

    @property
    def processor(self) -> GemmaMultimodalProcessor:
        """The processor of the model's folder, with the loaded towers only."""
        if self._processor is None:
            from gemma4_core.processing.processor import GemmaMultimodalProcessor

            self._processor = GemmaMultimodalProcessor.for_model(self)
        return self._processor

    @processor.setter
    def processor(self, processor: GemmaMultimodalProcessor) -> None:
        self._processor = processor

    @property
    def bidirectional(self) -> bool:
        """Whether media blocks of some loaded tower see themselves in both directions."""
        return self.config.vision_bidirectional and any(spec.bidirectional for spec in self.tower_specs)

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk that the device takes in one go; one with a media block may be longer."""
        return self.operations.longest_chunk(self.max_context, self.bidirectional)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: generation_config's, else the config's."""
        return self.generation_config.eos_token_ids

    def named_tensors(self) -> dict[str, Tensor]:
        """Every stored tensor of text model and towers by full checkpoint name, quantised parts included."""
        found = {name + suffix: t for name, w in self.places.items() for suffix, t in w.matrix.parts().items()}
        found |= self.tensors
        for tower in self.towers.values():
            found |= tower.parameters()
        return found

    def invalidate(self, *, graphs: bool = True) -> None:
        """Forget what was made with other weights; call after changing some (a transform, an adapter, training).

        Answers start from an empty cache then, whatever a cache held. Without ``graphs`` captured graphs of the text
        model stay: for weights whose values were written into the tensors that were there.
        """
        self.weights_revision += 1
        if graphs:
            self.graphs_revision += 1
            self.graphs.clear()
            self.pool.clear()
            self._engine = None
        for tower in self.towers.values():
            tower.forget()

    def settle(self) -> None:
        """Forget what was made with weights that may have changed since their gradients were taken."""
        if self.taught:
            self.taught = False
            self.invalidate()

    def refresh(self) -> None:
        """As ``settle``, for weights that anybody changed: other tensors in their places, and values written into
        norms and other vectors, of which kernels for the CPU hold copies. All else is read where it lies."""
        tensors = self.named_tensors().values()
        if written := [t for t in tensors if t.uop.op is Ops.AFTER]:
            Tensor.realize(*written)
        seen: list[Any] = [t.uop for t in tensors]
        if self.device.split(":")[0] == "CPU":
            buffers = (t.uop.base.buffer for t in self.tensors.values())
            seen += [zlib.crc32(buffer.as_memoryview(allow_zero_copy=True)) for buffer in buffers]
        if self.taught or seen != self._seen:
            if self._seen is not None:
                self.invalidate()
            self.taught, self._seen = False, seen
        for tower in self.towers.values():
            getattr(tower, "forget_tokens", tower.forget)()

    def make_cache(self, max_context: int | None = None) -> GemmaCache:
        """An empty cache for at most ``max_context`` positions (the model's context by default)."""
        return GemmaCache(max_context)

    # ------------------------------------------------------------------------------------------- forward

    def forward_ids(self, ids: Any, cache: GemmaCache | None = None, **media: Any) -> tuple[Tensor, GemmaCache | None]:
        """Logits fp32 ``[B, T, vocab]`` for every position given, and the cache (None without one).

        A flat list of ids is one row. Media keywords take what the processor returned, in the same call as their
        placeholders. Without a cache gradients of what is made of the logits reach every weight that trains, with
        ``loss.gradient(weight)`` or ``loss.backward()``; take them before the logits are realized, as tinygrad wants
        it. With a cache nothing is differentiated: gradients are zero. Raises InputError for ids outside the
        vocabulary, a context that does not hold them, and media that do not match their placeholders.
        """
        array = check_ids(ids, self.config.text_config.vocab_size)
        if cache is not None:
            self.settle()
            hidden = self.append(cache, place(self, array, media, capture=True), every=True)
            return self.engine.logits(*hidden), cache
        from gemma4_core.training.gradients import differentiable

        self.refresh()
        placed = place(self, array, media, capture=True)
        room = self.make_cache()
        rows = []
        for row in range(len(array)):
            room.reset()
            rows.append(self.append(room, placed.row(row), every=True))
        logits = self.engine.logits(np.concatenate([values for values, _ in rows]), rows[0][1])
        return differentiable(self, array, media, logits), None

    def append(self, cache: GemmaCache, placed: Placed, *, every: bool = False, skip: int = 0) -> Any:
        """Append a prompt from position ``skip`` on, chunk by chunk; ends as ``Engine.append`` does. With ``every``
        final hidden states come back: fp32 ``[B, T, H]`` on the host, and the dtype that they had on the device."""
        from gemma4_core.engine.engine import Chunk

        batch, total = placed.ids.shape
        storage = cache.reserve(self, batch, cache.length + total - skip)
        parts: list[np.ndarray] = []
        hidden: Any = None
        size = self.engine.chunk_size(storage)
        for start, stop in split(total - skip, size, None if placed.blocks is None else placed.blocks[:, skip:]):
            window = slice(skip + start, skip + stop)
            chunk = Chunk(
                placed.ids[:, window],
                None if placed.soft is None else placed.soft[:, window],
                None if placed.blocks is None else placed.blocks[:, window],
                placed.signature[window],
            )
            last = stop == total - skip
            hidden = self.engine.append(cache, chunk, placed.soft_tokens, every=every, wanted=every or last)
            if every:
                parts.append(hidden.numpy().astype(np.float32, copy=False)[:, : stop - start])
        return (np.concatenate(parts, 1), hidden.dtype) if every else hidden

    # ------------------------------------------------------------------------------------------- generation

    def generate(
        self,
        ids: Any,
        max_new_tokens: int | None = None,
        *,
        cache: GemmaCache | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop_ids: Sequence[int] | None = None,
        **media: Any,
    ) -> Iterator[int]:
        """Yield the ids that follow a prompt of ids, one by one.

        Unlike ``gemma4 generate`` this is greedy unless a temperature is given (the command takes
        generation_config.json), and it knows neither text nor chat template: ``stream_generate`` does.

        Args:
            ids: the prompt, one row of token ids: a list, an array or a tensor.
            max_new_tokens: most ids to yield; None is up to the end of the context.
            cache: of ``make_cache``; what it holds of the prompt already is not run again.
            temperature: 0 is greedy; above 0 samples.
            top_k: keep the so many likeliest ids; None or 0 is off.
            top_p: keep the likeliest ids of this total probability; None or 1 is off.
            min_p: keep ids at least this likely, relative to the likeliest; None or 0 is off.
            repetition_penalty: above 1 makes ids seen before less likely.
            seed: makes sampling repeatable.
            stop_ids: ids that end the answer and are not yielded; None is generation_config.json's.
            media: what the processor returned for images and sound, by the keywords of ``forward_ids``.

        Raises:
            InputError: before anything runs, for ids outside the vocabulary, values outside their bounds, media that
                do not match, and an unknown keyword, naming the nearest.

        ::

            ids = model.processor.prepare_inputs("Once upon a time").input_ids
            print(model.tokenizer.decode(list(model.generate(ids, max_new_tokens=32))))
        """
        from gemma4_core.generation.tokens import generate

        return generate(
            self, ids, max_new_tokens, cache=cache, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, stop_ids=stop_ids, **media,
        )

    def stream_generate(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int | None = None,
        *,
        prompt_tokens: Sequence[int] | None = None,
        cache: GemmaCache | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        literal: bool = False,
        **media: Any,
    ) -> AnswerStream:
        """Yield an answer as text, part by part: ``text``, ``kind`` (``text``, ``thinking``, ``tool_call``), ``token``,
        ``logprob``, and on the last part ``finish_reason`` and ``stats``.

        A ``str`` is a raw prompt, which the model goes on with; a list of messages goes through the folder's chat
        template. The command ``gemma4 generate`` always uses the template where there is one, unless ``--raw`` is
        given, and takes its sampling from generation_config.json; this is greedy unless a temperature is given.

        Args:
            prompt_or_messages: text, or messages such as ``[{"role": "user", "content": "Hello"}]``.
            max_new_tokens: most tokens of the answer; None is up to the end of the context.
            prompt_tokens: token ids in place of text or messages; they need no tokenizer.
            cache, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop_ids: as for ``generate``.
            stop: strings that end the answer and are left out of it.
            tools: declarations of tools that the model may call.
            thinking: lets the template make the model think first.
            literal: special tokens that are spelt in the prompt, in messages or in tools are text.
            media: files, images or arrays by each modality's keyword, such as ``images=[…]`` and ``audio=[…]``, and
                the options of modalities, such as ``image_tokens``.

        Returns:
            an iterator of parts, whose ``stats`` tell counts and speeds at any time.

        Raises:
            InputError, TokenizerError: before anything runs, also for an unknown keyword, naming the nearest.
        """
        from gemma4_core.generation.stream import stream_generate

        return stream_generate(
            self, prompt_or_messages, max_new_tokens, prompt_tokens=prompt_tokens, cache=cache,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
            seed=seed, stop=stop, stop_ids=stop_ids, tools=tools, thinking=thinking, literal=literal, **media,
        )

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """One vector for each text: the mean of the last hidden states over its tokens, BOS included, of length 1.

        Args:
            texts: raw texts, or one.

        Returns:
            fp32 ``[n, H]``.

        Raises:
            InputError, TokenizerError: no tokenizer, an empty text, or one that is longer than the context.
        """
        from gemma4_core.generation.embedding import embed

        return embed(self, texts)

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
        from gemma4_core.training.checkpoint import save_weights

        return save_weights(self, folder, format)

    def _repr_html_(self) -> str:
        from gemma4_core.model.table import html_table

        return html_table(self)
