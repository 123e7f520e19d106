"""What commands ask of a model, from what stands on the command line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.output import note
from gemma4_core.errors import Gemma4Warning, InputError

if TYPE_CHECKING:
    from gemma4_core.cli.plugin_options import PluginValues
    from gemma4_core.config import GenerationConfig
    from gemma4_core.contracts import Context
    from gemma4_core.model import GemmaModel
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

STDIN_LIMIT = 64 << 20
"""Bytes of a prompt or tool list; longer than any context."""
FILTERS = ("top_k", "top_p", "min_p")
SAMPLING = ("temperature", *FILTERS, "repetition_penalty", "seed")


@dataclass(frozen=True)
class Loading:
    """What ``load_pretrained`` is called with."""

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
    def taken_from(cls, values: dict[str, Any]) -> Loading:
        """Take the loading options out of a command's parameters."""
        return cls(**{name: values.pop(name) for name in cls.__dataclass_fields__ if name in values})

    def load(
        self, plugins: PluginValues, check: Callable[[GemmaMultimodalProcessor], None] | None = None
    ) -> GemmaModel:
        """Load the model; ``check`` looks at the prompt before weights are read. Raises a Gemma4Error before memory is
        spent where anything does not fit."""
        from gemma4_core import loading

        # whatever a plugin prints is no part of the answer
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Gemma4Warning)
            model = loading.load_pretrained(
                self.model, device=self.device, format=self.format, tokenizer=self.tokenizer,
                modalities=tuple(self.modality) or None, dtype=None if self.dtype == "auto" else self.dtype,
                max_context=self.context, ple=self.ple, beam=self.beam, beam_seconds=self.beam_seconds,
                options=plugins.options, check=check,
            )
        for warning in caught:
            if issubclass(warning.category, Gemma4Warning):
                note(str(warning.message))
        return model


def read_standard_input() -> str:
    """All of stdin as text. Raises InputError where it is too long or not UTF-8."""
    data = sys.stdin.buffer.read(STDIN_LIMIT + 1) if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    return decoded(data, "standard input")


def read_text_file(option: str, path: str) -> str:
    """A file's text. Raises InputError, naming option and file, where it cannot be read, is too long or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(STDIN_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from error
    return decoded(data, f"{option} {path}")


def decoded(data: bytes, where: str) -> str:
    """Bytes as UTF-8 text without a byte order mark. Raises InputError."""
    if len(data) > STDIN_LIMIT:
        raise InputError(f"{where} is longer than {STDIN_LIMIT >> 20} MiB, which fits no context")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start})") from error


def checked_text(option: str, text: str) -> str:
    """Text of the command line. Raises InputError where it holds bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{option} {text[:80]!r}: not UTF-8 text (character {error.start})") from error
    return text


def read_tools(path: str) -> list[dict[str, Any]]:
    """Tool declarations from a JSON file, in any form of ``tool_declarations``. Raises InputError naming the file."""
    import json

    from gemma4_core.text.tools import tool_declarations

    try:
        return tool_declarations(json.loads(read_text_file("--tools", path))) or []
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith("--tools ") else f"--tools {path}: {said}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--tools {path}: not a JSON file: {error}") from error


def sampling(config: GenerationConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling arguments of ``stream_generate``: what was given, else the folder's generation_config.json.

    Asking for a filter (``--top-k`` and so on) where the folder is greedy samples at its temperature.
    """
    asked = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    greedy = not config.do_sample and "temperature" not in asked and not any(asked.get(name) for name in FILTERS)
    defaults: dict[str, Any] = {"repetition_penalty": config.repetition_penalty}
    defaults["temperature"] = 0.0 if greedy else config.temperature
    if config.do_sample:
        defaults |= {name: getattr(config, name) for name in FILTERS}
    return defaults | asked


def model_name(context: Context) -> str:
    """What to call a checkpoint where a person reads: its hub name, ``demo``, or its folder's name."""
    from gemma4_core.checkpoint.hub import shown_name

    return shown_name(context.path) if context.path is not None else "the checkpoint"


def model_line(model: GemmaModel) -> str:
    """What was loaded, as ``demo: bf16 on cpu, cpu kernels``."""
    kernels = f"{model.operations.name} kernels"
    return f"{model_name(model.context)}: {model.format_name} on {model.device_name}, {kernels}"
