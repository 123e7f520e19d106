"""Loading the model that a command names, and the sampling settings that it asks for."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.output import note
from gemma4_core.errors import Gemma4Warning

if TYPE_CHECKING:
    from gemma4_core.cli.plugin_options import PluginValues
    from gemma4_core.config import GenerationConfig
    from gemma4_core.contracts import Context
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

FILTERS = ("top_k", "top_p", "min_p")
SAMPLING = (
    "temperature", *FILTERS, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
    "ignore_eos", "draft", "num_draft_tokens",
)


@dataclass(frozen=True)
class Loading:
    """Arguments of ``load_pretrained``, as options name them."""

    model: str
    device: str = "auto"
    beam: int = 0
    beam_seconds: float | None = None
    format: str = "auto"
    modality: Sequence[str] = ()
    tokenizer: str = "auto"
    context: int | None = None
    dtype: str = "auto"
    ple: str = "auto"

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> Loading:
        """The loading options among a command's parameters, which are removed from ``values``."""
        return cls(**{name: values.pop(name) for name in cls.__dataclass_fields__ if name in values})

    def load(
        self, plugins: PluginValues, check: Callable[[GemmaMultimodalProcessor], None] | None = None,
        draft: str | None = None, constraint: Mapping[str, Any] | None = None,
    ) -> LoadedModel:
        """Load the model. ``check`` may refuse the prompt; an unknown drafter, and a constraint that cannot be built,
        are refused; all before weights are read.

        Raises a Gemma4Error before memory is spent where anything does not fit.
        """
        from gemma4_core import loading
        from gemma4_core.plugins import registry

        def checked(processor: GemmaMultimodalProcessor) -> None:
            if draft not in (None, "off"):
                registry.select("drafter", processor.context, draft)
            if constraint is not None:
                from gemma4_core.generation.constraints import check_constraint

                check_constraint(processor, constraint)
            if check is not None:
                check(processor)

        # what a plugin prints must not get into the answer
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Gemma4Warning)
            model = loading.load_pretrained(
                self.model, device=self.device, format=self.format, tokenizer=self.tokenizer,
                modalities=tuple(self.modality) or None, dtype=None if self.dtype == "auto" else self.dtype,
                max_context=self.context, ple=self.ple, beam=self.beam, beam_seconds=self.beam_seconds,
                options=plugins.options, check=checked,
            )
        for warning in caught:
            if issubclass(warning.category, Gemma4Warning):
                note(str(warning.message))
        return model


def sampling(config: GenerationConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling arguments of ``stream_generate``: the given options, else those of the folder's generation_config.json.

    A filter (``--top-k``, ``--top-p``, ``--min-p``) turns sampling on where the folder's default is greedy.
    """
    asked = {name: given[name] for name in SAMPLING if given.get(name) is not None and given[name] != ()}
    if "logit_bias" in asked:
        asked["logit_bias"] = dict(asked["logit_bias"])  # pairs on the command line
    greedy = not config.do_sample and "temperature" not in asked and not any(asked.get(name) for name in FILTERS)
    defaults: dict[str, Any] = {"repetition_penalty": config.repetition_penalty}
    defaults["temperature"] = 0.0 if greedy else config.temperature
    if config.do_sample:
        defaults |= {name: getattr(config, name) for name in FILTERS}
    return defaults | asked


def model_name(context: Context) -> str:
    """A checkpoint's name in messages: its hub name, ``demo``, or its folder."""
    from gemma4_core.checkpoint.hub import shown_name

    return shown_name(context.path) if context.path is not None else "the checkpoint"


def model_line(model: LoadedModel) -> str:
    """One line about a loaded model: ``demo: bf16 on cpu, cpu kernels``."""
    kernels = f"{model.operations.name} kernels"
    return f"{model_name(model.context)}: {model.format_name} on {model.device_name}, {kernels}"
