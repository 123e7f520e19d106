"""Helpers of the make_*.py scripts: models of transformers filled with the weights of ``reference_data.draw``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from reference_data import base_name, draw

TORCH, TRANSFORMERS = "2.13.0", "5.23.0"


def check_versions() -> None:
    """Stop when the installed versions are not the pinned ones."""
    found = torch.__version__.split("+")[0], transformers.__version__
    if found != (TORCH, TRANSFORMERS):
        sys.exit(f"needs torch {TORCH} and transformers {TRANSFORMERS}, found {found[0]} and {found[1]}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter and stored buffer its drawn value; a tied head follows its table."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if base_name(name) != "lm_head.weight":
                tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape), seed)))
    return model.eval()


def open_model(cls: type, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Open a saved checkpoint with the eager implementations, so that the reference is the plain formula."""
    options = {"attn_implementation": "eager", "experts_implementation": "eager"} | options
    return cls.from_pretrained(folder, dtype=dtype, **options).eval()


def array(x: torch.Tensor) -> np.ndarray:
    """A tensor as a numpy array (bf16 widened to fp32)."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
