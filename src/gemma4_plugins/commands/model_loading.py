"""Loading the model that a command names."""

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
    from gemma4_core.contracts import Context
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

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


def model_name(context: Context) -> str:
    """A checkpoint's name in messages: its hub name, ``demo``, or its folder."""
    from gemma4_core.checkpoint.hub import shown_name

    return shown_name(context.path) if context.path is not None else "the checkpoint"


def model_line(model: LoadedModel) -> str:
    """One line about a loaded model: ``demo: bf16 on cpu, cpu kernels``."""
    kernels = f"{model.operations.name} kernels"
    return f"{model_name(model.context)}: {model.format_name} on {model.device_name}, {kernels}"
