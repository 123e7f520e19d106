"""Steps that a device runs by itself: what it is given, and what it gives back.

The engine asks ``Operations.decode_step`` and ``Operations.prefill`` with a ``DecoderView`` and a cache's buffers; what
they return is called for every token, or for every chunk of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tinygrad import Tensor, UOp
    from tinygrad.dtype import DType

    from gemma4_core.model.decoder import Inputs, TextDecoder
    from gemma4_core.model.layers import Rotation
    from gemma4_core.model.ple import HostTable
    from gemma4_core.ops import Operations
    from gemma4_core.ops.sampling import SamplingState
    from gemma4_core.ops.steps import Chunk, PrefillResult
    from gemma4_core.ops.tower_table import TowerOperations
    from gemma4_core.weights import Weight


class CacheBuffers(Protocol):
    """Buffers that hold the keys and values of one cache."""

    @property
    def batch(self) -> int:
        """Rows."""

    @property
    def capacity(self) -> int:
        """Positions that full layers have room for."""

    @property
    def layers(self) -> Sequence[Tensor | None]:
        """``[2, B, kv heads, slots, head_dim]`` per layer: K then V; None for layers that share another's."""

    @property
    def graphs(self) -> dict[object, object]:
        """What was made against these buffers, by a key of the maker's; dropped when weights change."""


class DecoderView(Protocol):
    """What a device sees of the decoder. It reads weights where they lie and changes nothing of them."""

    @property
    def text(self) -> TextDecoder:
        """The decoder: its config, its layers with their weights, and rotary tables."""

    @property
    def places(self) -> Mapping[str, Weight]:
        """Matrices and expert stacks by full checkpoint name."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The other tensors by full checkpoint name."""

    @property
    def device(self) -> str:
        """tinygrad's name of the device."""

    @property
    def dtype(self) -> DType:
        """What activations are computed in."""

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""

    @property
    def chunk(self) -> int:
        """Positions per chunk of a prompt, and the slack of sliding caches."""

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk, those with a media block included."""

    @property
    def ple_host(self) -> HostTable | None:
        """The per-layer embedding table, where it is not on the device."""

    @property
    def suppressed(self) -> Tensor | None:
        """bool ``[1, V]`` on the device: ids that are never chosen; None where all may be."""

    @property
    def suppressed_ids(self) -> Sequence[int]:
        """The same ids as numbers."""

    @property
    def scratch(self) -> dict[object, object]:
        """What the device keeps for this model whatever the cache, by a key of its own; dropped when weights change."""

    def decode_step(self, storage: CacheBuffers, state: SamplingState | None) -> DecodeStep:
        """The step that decodes against these buffers, greedy or sampled."""

    def choose(self, logits: Tensor, position: int, state: SamplingState) -> tuple[Tensor, Tensor]:
        """Sample the token at a position from logits fp32 ``[1, V]``: its id and log-probability."""


class DecodeStep(Protocol):
    """Token ids int32 ``[B, 1]`` and the position they take, to the next ids and their log-probabilities.

    A step may have an attribute ``ahead``: how many further steps may be queued before this one's result is read. Its
    results then have a method ``read() -> (id, log-probability)`` that waits for this step and no later one.
    """

    def __call__(self, token: Tensor, position: int, state: SamplingState | None, /) -> tuple[Tensor, Tensor]:
        """Decode one token."""


class ChunkStep(Protocol):
    """Appends a chunk of one row to a cache."""

    def __call__(
        self, chunk: Chunk, start: int, soft_tokens: Tensor | None, every: bool, wanted: bool, /
    ) -> Tensor | PrefillResult:
        """Append at position ``start``. ``soft_tokens [N, H]`` are those that ``chunk.soft`` counts. With ``every`` the
        hidden states of all rows come back, ``[1, n, H]``; else the last row's logits, where they are ``wanted``."""


class DecodeStepFactory(Protocol):
    """``Operations.decode_step``."""

    def __call__(self, view: DecoderView, storage: CacheBuffers, sampled: bool, /) -> DecodeStep | None:
        """The device's step against these buffers; None where it does not serve this model."""


class ChunkStepFactory(Protocol):
    """``Operations.prefill``."""

    def __call__(self, view: DecoderView, storage: CacheBuffers, /) -> ChunkStep | None:
        """The device's chunk step against these buffers; None where it does not serve this model."""


class LayersOperation(Protocol):
    """``Operations.layers``."""

    def __call__(
        self, text: TextDecoder, inputs: Inputs, layers: Sequence[Tensor | None], table: Rotation, position: UOp, /
    ) -> Tensor | None:
        """Final hidden states ``[1, 1, H]``; None where the device does not serve this model."""


class TowerOperationsFactory(Protocol):
    """``Operations.towers``."""

    def __call__(self, operations: Operations, device: str, /) -> TowerOperations:
        """The operations of towers over these, for a tinygrad device."""
