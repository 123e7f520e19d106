"""The type that a checkpoint is run in, as tinygrad names it."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import dtypes
from tinygrad.dtype import DType

from gemma4_core.checkpoint.opening import run_dtype
from gemma4_core.config import GemmaConfig
from gemma4_core.contracts import TensorInfo

RUN_DTYPES: dict[str, DType] = {"bfloat16": dtypes.bfloat16, "float32": dtypes.float32}


def choose_dtype(dtype: str | None, infos: Mapping[str, TensorInfo], config: GemmaConfig) -> DType:
    """See ``run_dtype``. Raises InputError."""
    return RUN_DTYPES[run_dtype(config, infos, dtype)]
