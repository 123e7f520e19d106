"""The type that a checkpoint is run in."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import dtypes
from tinygrad.dtype import DType

from gemma4_core.checkpoint.choose import run_dtype
from gemma4_core.config import GemmaConfig
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import InputError

RUN_DTYPES: dict[str, DType] = {"bfloat16": dtypes.bfloat16, "float32": dtypes.float32}


def choose_dtype(dtype: str | None, infos: Mapping[str, TensorInfo], config: GemmaConfig) -> DType:
    """The run-time dtype: the one given, else ``run_dtype`` of the checkpoint."""
    name = run_dtype(config, infos)
    if dtype is not None:
        name = str(dtype).removeprefix("dtypes.").removeprefix("torch.")
        name = {"bf16": "bfloat16", "fp32": "float32", "float": "float32"}.get(name, name)
    if name not in RUN_DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(RUN_DTYPES)}")
    return RUN_DTYPES[name]
