"""Learning rates over a run, as plain functions of the step."""

from __future__ import annotations

import math

from gemma4_core.errors import InputError


def warm(step: int, warmup: int) -> float:
    """The factor of a linear warm-up: ``1 / warmup`` at step 0, 1 from step ``warmup - 1`` on."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def progress_of(step: int, steps: int, warmup: int) -> float:
    """How much of the run after the warm-up is done, 0 to 1. Raises InputError for a run that cannot be."""
    if not 0 <= warmup <= steps or steps < 1 or step < 0:
        raise InputError(f"schedule: step {step}, {warmup} warm-up steps and {steps} steps do not fit together")
    return min(1.0, max(0, step - warmup) / max(1, steps - warmup))


def constant(lr: float, step: int, steps: int, warmup: int = 0) -> float:
    """The rate at ``step`` (from 0): warm-up, then ``lr``."""
    progress_of(step, steps, warmup)
    return lr * warm(step, warmup)


def cosine(lr: float, step: int, steps: int, warmup: int = 0, final: float = 0.1) -> float:
    """The rate at ``step`` (from 0) of ``steps``: warm-up, then half a cosine down to ``final`` times ``lr``."""
    done = progress_of(step, steps, warmup)
    return lr * warm(step, warmup) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def linear(lr: float, step: int, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """The rate at ``step`` (from 0) of ``steps``: warm-up, then a straight line down to ``final`` times ``lr``."""
    return lr * warm(step, warmup) * (1 - (1 - final) * progress_of(step, steps, warmup))
