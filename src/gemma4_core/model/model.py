"""``GemmaModel``: an assembled model. Ids in, logits or tokens out; text and media go through ``stream_generate``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop import Ops

from gemma4_core.config import GenerationConfig
from gemma4_core.descriptions import Context, ModalityTower, Tokenizer, Tower, TrainedPart
from gemma4_core.model.cache import GemmaCache, StoragePool
from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.ids import check_ids, split
from gemma4_core.model.media import Placed, place
from gemma4_core.ops import Operations
from gemma4_core.weights import Weight

if TYPE_CHECKING:
    from gemma4_core.generation.stream import Part
    from gemma4_core.model.ple import HostTable
    from gemma4_core.processor import GemmaMultimodalProcessor
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
        self.chunk = min(operations.prefill_chunk, self.max_context)
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
        self.chunk = min(operations.prefill_chunk, self.max_context)
        self.invalidate()

    @property
    def engine(self) -> Any:
        """The captured graphs of this model."""
        if self._engine is None:
            from gemma4_core.generation.engine import Engine

            self._engine = Engine(self)
        return self._engine

    @property
    def processor(self) -> GemmaMultimodalProcessor:
        """The processor of the model's folder, with the loaded towers only."""
        if self._processor is None:
            from gemma4_core.processor import GemmaMultimodalProcessor

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
        own = self.operations.prefill_both_ways if self.bidirectional else 0
        return max(self.chunk, min(own, self.max_context))

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
        from gemma4_core.generation.engine import Chunk

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

    def generate(self, ids: Any, max_new_tokens: int | None = None, **options: Any) -> Iterator[int]:
        """Yield generated ids one by one; see ``gemma4_core.generation.tokens.generate`` for the options."""
        from gemma4_core.generation.tokens import generate

        return generate(self, ids, max_new_tokens, **options)

    def stream_generate(
        self,
        prompt_or_messages: str | Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Iterator[Part]:
        """Yield parts of an answer as text; see ``gemma4_core.generation.stream.stream_generate`` for the options."""
        from gemma4_core.generation.stream import stream_generate

        return stream_generate(self, prompt_or_messages, max_new_tokens, **options)
