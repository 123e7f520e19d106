"""A new adapter that changes nothing yet: A random, B zero, the same for the same seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma4_core import InputError
from gemma4_core.formatting import is_number, shown
from gemma4_lora.config import LoraConfig
from gemma4_lora.files import AdapterFiles, Pair
from gemma4_lora.names import choose_targets, module_of

INITS = ("kaiming", "gaussian")
RANK, SEED = 16, 0


def plan_adapter(
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str,
    *,
    rank: int = RANK,
    alpha: float | None = None,
    targets: Sequence[str] = (),
    use_rslora: bool = False,
    dropout: float = 0.0,
    init: str = INITS[0],
    seed: int = SEED,
    base_model: str | None = None,
) -> tuple[LoraConfig, list[str]]:
    """Config and matrices of a new adapter. Arguments and errors are those of ``fresh_adapter``."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= 65536:
        raise InputError(f"--lora-rank {shown(rank)}: a whole number from 1 to 65536 is expected")
    alpha = 2.0 * rank if alpha is None else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1e9:
        raise InputError(f"--lora-alpha {shown(alpha)}: a number above 0 is expected")
    if init not in INITS:
        raise InputError(f"--lora-init {init!r}: choose one of {', '.join(INITS)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"--lora-seed {shown(seed)}: a whole number from 0 is expected")
    names = choose_targets(shapes, targets, prefix)
    check_dropout(dropout, {name: shapes[name] for name in names})
    return LoraConfig(rank, float(alpha), use_rslora, base_model=base_model, lora_dropout=float(dropout)), names


def check_dropout(dropout: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for a dropout that the adapter of these matrices cannot train with."""
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise InputError(f"--lora-dropout {shown(dropout)}: a number from 0 to below 1 is expected")
    stack = next((name for name, shape in shapes.items() if len(shape) == 3), None)
    if dropout and stack is not None:
        raise InputError(f"--lora-dropout {dropout:g}: {shown(stack)} is a stack of experts, whose adapters have no "
                         f"dropout, nor have peft's; leave it out of --lora-targets")


def fresh_adapter(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, *, init: str = INITS[0], seed: int = SEED, **options: Any
) -> AdapterFiles:
    """A new adapter for chosen matrices.

    Args:
        shapes: every adaptable matrix by checkpoint name.
        prefix: what stands before the text tensors' names.
        init: ``kaiming`` (A uniform within 1/sqrt(in), as peft) or ``gaussian`` (deviation 1/rank).
        seed: seed of the random numbers.
        options: ``rank`` (16); ``alpha`` (twice the rank): changes are scaled by alpha / rank, with ``use_rslora`` by
            alpha / sqrt(rank); ``dropout``: the share of inputs that is dropped in training; ``targets``: globs over
            checkpoint names, or module names such as ``q_proj``; ``base_model``: the model that it is for, recorded in
            its config.

    Raises:
        InputError: a value out of range, or a target that names no matrix.
    """
    config, names = plan_adapter(shapes, prefix, init=init, seed=seed, **options)
    return AdapterFiles(config, {name: fresh_pair(name, shapes[name], config, init, seed) for name in names})


def fresh_pair(name: str, shape: Sequence[int], config: LoraConfig, init: str, seed: int) -> Pair:
    """The pair of one matrix; its numbers depend on its name, not on what else is adapted."""
    *experts, out, inner = shape
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    size = (*experts, config.r, inner)
    bound = 1 / math.sqrt(inner)
    a = random.normal(0, 1 / config.r, size) if init == "gaussian" else random.uniform(-bound, bound, size)
    return Pair(a.astype(np.float32), np.zeros((*experts, out, config.r), np.float32), config.of(module_of(name))[1])
