"""``GemmaModel``: the weights of an assembled model on a device, and what is made of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop import Ops

from gemma4_core.contracts import AdapterSet, Context, ModalityTower, Tower, TrainedPart
from gemma4_core.errors import PluginError
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.slots import SlotPool
from gemma4_core.ops import Operations
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import Weight

if TYPE_CHECKING:
    from gemma4_core.model.ple import HostTable


class GemmaModel:
    """Weights on a device, the text decoder over them, and towers. This is what plugins (towers, transforms) get.

    ``load_pretrained`` returns a ``LoadedModel``, which is a GemmaModel with all that is needed to use it: tokenizer,
    chat template, processor, ``forward_ids`` and ``generate``.

    Args:
        context: the checkpoint, with its parsed config.
        device: tinygrad's name of the device.
        dtype: what activations are computed in.
        operations: the device's, or portable ones.
        places: every matrix and expert stack by full checkpoint name.
        tensors: every other tensor by full checkpoint name.
        suppressed_ids: ids that are never chosen; those outside the vocabulary are left out.
        max_context: most positions of a prompt with its answer; None is what the config says.
        ple_host: the per-layer embedding table where it is not on the device.
        known_specs: descriptions of every tower that the config declares and a plugin serves, loaded or not.
        stored_names: names in the checkpoint's files by ours, where they differ.
        unserved: tensors of the checkpoint that no plugin serves; they are saved as they are.
        format_name: name of the checkpoint format that the weights came in.
    """

    def __init__(
        self,
        context: Context,
        device: str,
        dtype: DType,
        operations: Operations,
        places: dict[str, Weight],
        tensors: dict[str, Tensor],
        *,
        suppressed_ids: Sequence[int] = (),
        max_context: int | None = None,
        ple_host: HostTable | None = None,
        known_specs: Sequence[ModalityTower] = (),
        stored_names: Mapping[str, str] | None = None,
        unserved: Sequence[str] = (),
        format_name: str = "",
    ) -> None:
        assert context.config is not None
        self.context, self.config = context, context.config
        self.device, self.dtype, self._operations = device, dtype, operations
        self.places, self.tensors = places, tensors
        text = self.config.text_config
        self.max_context = min(max_context or text.max_position_embeddings, text.max_position_embeddings)
        self.chunk = operations.chunk(self.max_context)
        """Positions per chunk of a prompt."""
        self.ple_host = ple_host
        self.text = TextDecoder(text, self.config.text_prefix, places, tensors, dtype)
        self.known_specs, self.unserved = list(known_specs), tuple(unserved)
        self.stored_names, self.format_name = dict(stored_names or {}), format_name
        self.towers: dict[str, Tower] = {}
        self.tower_specs: list[ModalityTower] = []
        """Descriptions of the loaded towers, in the same order."""
        self.trained_part: TrainedPart | None = None
        """What trains and is saved in place of the whole model, such as an adapter."""
        self.adapters: AdapterSet | None = None
        """Adapters that requests may choose among, where a transform brings them."""
        self.transformed = False
        """Whether a transform changed it."""
        self.pool = SlotPool()
        self.graphs: dict[object, object] = {}
        """Captured graphs that read weights and no cache, by what they do."""
        self.weights_revision = self.graphs_revision = 0
        """How often weights changed, and how often they changed such that captured graphs hold the old ones."""
        self.gradients_taken = False
        """Whether gradients of ``forward_ids`` were taken since: the weights may have changed then."""
        self._seen: list[Any] | None = None
        self.suppressed_ids = tuple(i for i in suppressed_ids if 0 <= i < text.vocab_size)
        self.suppressed: Tensor | None = None
        """bool ``[1, V]`` on the device, None where every id may be chosen."""
        if self.suppressed_ids:
            marks = np.zeros((1, text.vocab_size), np.bool_)
            marks[0, list(self.suppressed_ids)] = True
            self.suppressed = upload(marks, device)

    def __repr__(self) -> str:
        text = self.config.text_config
        return (f"{type(self).__name__}({text.num_hidden_layers} layers, hidden {text.hidden_size}, on {self.device}, "
                f"towers: {', '.join(self.towers) or 'none'})")

    def add_tower(self, spec: ModalityTower, tower: Tower) -> None:
        """Add a tower that was built on this model's device."""
        self.towers[spec.name] = tower
        self.tower_specs.append(spec)

    def train_only(self, part: TrainedPart, name: str) -> None:
        """Let a part train and be saved in place of the whole model. ``name`` is the transform's that brings it.

        Raises PluginError where another transform brought such a part already.
        """
        if self.trained_part is not None:
            raise PluginError(f"transform {name}: another transform already brings the part that trains; use one at a "
                              f"time")
        self.trained_part = part

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
    def bidirectional(self) -> bool:
        """Whether media blocks of some loaded tower see themselves in both directions."""
        return self.config.vision_bidirectional and any(spec.bidirectional for spec in self.tower_specs)

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk that the device takes in one go; one with a media block may be longer."""
        return self.operations.longest_chunk(self.max_context, self.bidirectional)

    def named_tensors(self) -> dict[str, Tensor]:
        """Every stored tensor of text model and towers by full checkpoint name, quantised parts included."""
        found = {name + suffix: t for name, w in self.places.items() for suffix, t in w.matrix.parts().items()}
        found |= self.tensors
        for tower in self.towers.values():
            found |= tower.parameters()
        return found

    def make_cache(self, max_context: int | None = None) -> GemmaCache:
        """An empty cache for at most ``max_context`` positions (the model's context by default)."""
        return GemmaCache(max_context)

    # ------------------------------------------------------------------------------------------- changed weights

    def invalidate(self, *, graphs: bool = True) -> None:
        """Drop what was made with other weights; call after changing some (a transform, an adapter, training).

        Answers start from an empty cache then, whatever a cache held. Without ``graphs`` captured graphs of the text
        model stay: for weights whose values were written into the tensors that were there.
        """
        self.weights_revision += 1
        if graphs:
            self.graphs_revision += 1
            self.graphs.clear()
            self.pool.clear()
        for tower in self.towers.values():
            tower.forget()

    def invalidate_if_trained(self) -> None:
        """``invalidate`` where gradients were taken since, after which an optimizer may have changed the weights."""
        if self.gradients_taken:
            self.gradients_taken = False
            self.invalidate()

    def invalidate_if_changed(self) -> None:
        """``invalidate`` where weights differ from those of the last call, whoever changed them: other tensors in their
        places, and values written into norms and other vectors, of which kernels for the CPU hold copies. All other
        weights are read where they lie."""
        tensors = self.named_tensors().values()
        if written := [t for t in tensors if t.uop.op is Ops.AFTER]:
            Tensor.realize(*written)
        seen: list[Any] = [t.uop for t in tensors]
        if self.device.split(":")[0] == "CPU":
            buffers = (t.uop.base.buffer for t in self.tensors.values())
            seen += [zlib.crc32(buffer.as_memoryview(allow_zero_copy=True)) for buffer in buffers]
        if self.gradients_taken or seen != self._seen:
            if self._seen is not None:
                self.invalidate()
            self.gradients_taken, self._seen = False, seen
        for tower in self.towers.values():
            getattr(tower, "forget_tokens", tower.forget)()
