"""Names: matrices of a checkpoint, modules of transformers 5.23.0, and keys of an adapter file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from gemma4_core import InputError, registry
from gemma4_core.config import GemmaConfig, below_wrappers
from gemma4_core.formatting import shown

KEY_PREFIX = "base_model.model."
WEIGHT = ".weight"
TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")
DEFAULT_TARGETS = ("layers.*.self_attn.?_proj.weight", "layers.*.mlp.*_proj.weight")
"""Globs over names without the text model's prefix."""
CONDITIONAL, TEXT_ONLY = "model.language_model.", "model."


def adaptable(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Every matrix ``[out, in]`` and stack ``[experts, out, in]`` that an adapter may change, by checkpoint name.

    Embedding tables are not among them: peft's change to one does not act the same on lookup and head.
    """
    expected = registry.expected_tensors(config)
    return {
        name: shape for name, shape in expected.items()
        if not name.endswith(TABLES) and ((name.endswith(WEIGHT) and len(shape) == 2) or is_stack(name))
    }  # fmt: skip


def choose_targets(names: Iterable[str], patterns: Sequence[str], prefix: str) -> list[str]:
    """The matrices that patterns match, in the model's order.

    A pattern is a glob over full names (``*.mlp.*``), or the end of a module's name as peft takes it (``q_proj``).
    Without patterns: attention and MLP of the text layers. Raises InputError for one that matches no adaptable matrix.
    """
    known = list(names)
    chosen: set[str] = set()
    for text in patterns or [prefix + pattern for pattern in DEFAULT_TARGETS]:
        found = [name for name in known if fnmatchcase(name, text) or ends(module_of(name), text)]
        if not found:
            raise InputError(f"--lora-targets {shown(text)} names no matrix that can be adapted; examples are "
                             f"{', '.join(known[:2])}, or q_proj for all of that name")
        chosen.update(found)
    return [name for name in known if name in chosen]


def ends(module: str, text: str) -> bool:
    """Whether a module has this name, or ends with a dot and this name."""
    return module == text or module.endswith("." + text)


def module_of(name: str) -> str:
    """A matrix's module; a stack of experts is a parameter and keeps its name."""
    return name.removesuffix(WEIGHT)


def keys_of(names: Sequence[str]) -> dict[str, str]:
    """The adapter file's key of each matrix, without ``.lora_A.weight``.

    peft wraps a module once for each parameter that it adapts: where both stacks of one layer's experts are adapted
    the wrapper of ``gate_up_proj`` is inside that of ``down_proj``.
    """
    keys = {}
    for name in names:
        module = module_of(name)
        if is_stack(name):
            experts, _, parameter = name.rpartition(".")
            inner = parameter == "gate_up_proj" and f"{experts}.down_proj" in names
            module = f"{experts}.base_layer" if inner else experts
        keys[name] = KEY_PREFIX + module
    return keys


def is_stack(name: str) -> bool:
    """Whether a matrix is a stack of experts."""
    return ".experts." in name


def bare(module: str) -> str:
    """A module's name without the wrappers around it."""
    return re.sub(r"(\.base_layer)+$", "", module)


def named_by(module: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The matrices that a module of an adapter file may mean: one, for experts two that differ in shape.

    A module of the text model alone is found in a checkpoint with towers, and vice versa, with or without the names of
    the modules around it as a prefix.
    """
    module = bare(module)
    rest = below_wrappers(module)
    for spelling in (module, CONDITIONAL + rest, TEXT_ONLY + rest):
        names = (spelling + WEIGHT, f"{spelling}.gate_up_proj", f"{spelling}.down_proj")
        if found := [name for name in names if name in shapes]:
            return found
    return []
