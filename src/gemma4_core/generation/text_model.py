"""``TextModel``: a model with tokenizer, template, processor and engine, before anything is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.config import GenerationConfig
from gemma4_core.contracts import Context, ModalityTower, Tokenizer
from gemma4_core.engine.engine import Engine
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.ple import HostTable
from gemma4_core.ops import Operations
from gemma4_core.processing.processor import GemmaMultimodalProcessor
from gemma4_core.text import ChatTemplate
from gemma4_core.weights import Weight


class TextModel(GemmaModel):
    """What requests and schedulers need of a model.

    Args:
        context, device, dtype, operations, places, tensors, max_context, ple_host, known_specs, stored_names, unserved,
            format_name: as for ``GemmaModel``.
        tokenizer: the folder's; one without text (``--tokenizer raw``) where it has none.
        template: the folder's chat template, if it has one.
        processor: prepares prompts and media for this model.
        generation_config: the folder's generation_config.json, filled up from the config.
        options: values of the plugins' own options that it is loaded with.
        device_name: name of the device plugin.
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
        max_context: int | None,
        ple_host: HostTable | None,
        known_specs: Sequence[ModalityTower],
        stored_names: Mapping[str, str],
        unserved: Sequence[str],
        format_name: str,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        processor: GemmaMultimodalProcessor,
        generation_config: GenerationConfig,
        options: Mapping[str, Any],
        device_name: str,
    ) -> None:
        super().__init__(
            context, device, dtype, operations, places, tensors, suppressed_ids=generation_config.suppress_tokens,
            max_context=max_context, ple_host=ple_host, known_specs=known_specs, stored_names=stored_names,
            unserved=unserved, format_name=format_name,
        )
        self.tokenizer, self.template, self.processor = tokenizer, template, processor
        self.generation_config, self.options = generation_config, dict(options)
        self.device_name = device_name
        self.load_seconds = 0.0
        """How long ``load_pretrained`` took."""
        self.engine = Engine(self)
        """Runs prompts and steps as captured graphs."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: generation_config's, else the config's."""
        return self.generation_config.eos_token_ids
