"""Steps: what a device that runs the decoder by itself is given, and what it gives back.

The engine asks ``Operations.step`` with a ``DecoderView`` and the slots; what comes back is called with ``Rows`` for
every token and every chunk of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor, UOp
    from tinygrad.dtype import DType

    from gemma4_core.contracts.rows import Rows, SamplingRows
    from gemma4_core.model.decoder import Inputs, TextDecoder
    from gemma4_core.model.layers import Rotation
    from gemma4_core.model.ple import HostTable
    from gemma4_core.ops import Operations
    from gemma4_core.ops.steps import Outcome
    from gemma4_core.ops.tower_table import TowerOperations
    from gemma4_core.weights import Weight


class Slots(Protocol):
    """Device memory for the keys and values of several sequences, one slot for each."""

    @property
    def count(self) -> int:
        """Slots, S."""

    @property
    def capacity(self) -> int:
        """Positions that full layers have room for in a slot."""

    @property
    def layers(self) -> Sequence[Tensor | None]:
        """``[S, 2, kv heads, positions, head_dim]`` per layer, keys then values; None for layers that share another's.
        Sliding layers hold position p at p mod positions."""

    @property
    def graphs(self) -> dict[object, object]:
        """What was made against these buffers, by a key of the maker's; dropped when weights change."""

    def claim(self, positions: int) -> int:
        """A free slot for a sequence of at most so many positions."""

    def truncate(self, slot: int, length: int) -> bool:
        """Take back all but the first ``length`` positions; False where a ring no longer holds their window."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a slot hold the first ``length`` positions of another one."""

    def release(self, slot: int) -> None:
        """Give a slot back."""

    def tokens(self, slot: int) -> Sequence[int]:
        """The ids that a slot holds, negative numbers where soft tokens stand: the same list as long as one sequence
        has the slot."""


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
        """Positions per chunk of a prompt."""

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk, those with a media block included; the slack of sliding layers' rings."""

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
        """What the device keeps for this model whatever the slots, by a key of its own; dropped when weights change."""

    def choose(self, logits: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        """The choices of the wanted rows from their logits fp32 ``[M, V]``, by a captured graph. Rows of padding may
        follow: a graph is captured for each number of rows."""

    def finish(self, hidden: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        """The choices of the wanted rows from their final hidden states ``[M, H]``, likewise."""


class StepResult(Protocol):
    """What a step leaves on the device for its M wanted rows; the next call may overwrite it."""

    @property
    def ids(self) -> Tensor:
        """int32 ``[M]``: the ids chosen."""

    @property
    def hidden(self) -> Tensor | None:
        """``[M, H]``: final hidden states, where they were asked for; rows of padding may follow."""

    @property
    def logits(self) -> Tensor | None:
        """fp32 ``[M, V]``, where they were asked for."""

    def read(self) -> list[tuple[int, float]]:
        """Each row's id and its log-probability under the model; waits for this step and no later one."""


class Step(Protocol):
    """Runs rows against the slots that it was made for."""

    max_rows: int
    """The most rows of a call."""
    ahead: int
    """Further steps of decoding that may be queued before one is read."""

    def serves(self, rows: Rows, sampling: SamplingRows | None) -> bool:
        """Whether it runs such rows in one call; the engine cuts them by slots, or runs them portably, otherwise."""

    def __call__(
        self, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        """Append the rows' keys and values and choose for the wanted ones; without ``sampling`` nothing is chosen."""


class StepFactory(Protocol):
    """``Operations.step``."""

    def __call__(self, view: DecoderView, slots: Slots, /) -> Step | None:
        """The device's step against these slots; None where it does not serve this model. Asked once per slots."""


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


class Drafter(Protocol):
    """Proposes the tokens that may follow; built for a model and its slots. The target model decides what is kept."""

    needs_hidden: bool
    """Whether ``propose`` wants hidden states."""

    def propose(self, rows: Rows, hidden: Tensor | None, k: int) -> Tensor | np.ndarray:
        """int32 ``[N, k]``: what may follow each row, -1 from where it has nothing to propose. The rows are the newest
        token of each sequence, which its slot does not hold yet; ``hidden [N, H]`` is what they were chosen from."""


class Constraint(Protocol):
    """Which ids may follow in one sequence."""

    def mask(self) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]``: bit ``id % 32`` of word ``id // 32`` is set where the id is allowed."""

    def advance(self, token: int) -> None:
        """Take in a chosen id."""

    def rollback(self, tokens: int) -> None:
        """Take back the last so many ids."""

    def forced(self) -> Sequence[int]:
        """The ids that must follow, as far as there is no choice."""
