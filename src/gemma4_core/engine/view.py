"""The read-only view of the decoder that devices get in place of engine and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.ple import HostTable
from gemma4_core.weights import Weight

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import Rows, SamplingRows
    from gemma4_core.engine.choosing import Chooser
    from gemma4_core.ops.steps import Outcome


class ModelView:
    """See ``gemma4_core.contracts.steps.DecoderView``. Always that of the model as it is now."""

    def __init__(self, model: GemmaModel, chooser: Chooser) -> None:
        self._model, self._chooser = model, chooser

    @property
    def text(self) -> TextDecoder:
        return self._model.text

    @property
    def places(self) -> Mapping[str, Weight]:
        return self._model.places

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._model.tensors

    @property
    def device(self) -> str:
        return self._model.device

    @property
    def dtype(self) -> DType:
        return self._model.dtype

    @property
    def vocab(self) -> int:
        return self._model.config.text_config.vocab_size

    @property
    def chunk(self) -> int:
        return self._model.chunk

    @property
    def longest_chunk(self) -> int:
        return self._model.longest_chunk

    @property
    def ple_host(self) -> HostTable | None:
        return self._model.ple_host

    @property
    def suppressed(self) -> Tensor | None:
        return self._model.suppressed

    @property
    def suppressed_ids(self) -> Sequence[int]:
        return self._model.suppressed_ids

    @property
    def scratch(self) -> dict[object, object]:
        return self._model.graphs

    def choose(self, logits: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        return self._chooser.from_logits(logits, rows, sampling)

    def finish(self, hidden: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        return self._chooser.from_hidden(hidden, rows, sampling)
