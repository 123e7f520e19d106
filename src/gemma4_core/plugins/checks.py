"""Validation of what hooks return: descriptions come from other packages, and their fields may hold anything."""

from __future__ import annotations

from typing import Any

from gemma4_core.contracts import KINDS, Description, Option
from gemma4_core.plugins.origin import one_line

NAME_LIMIT = 60
RESERVED = {"auto", "none", "all"}
CALLABLES: dict[str, tuple[str, ...]] = {
    "format": ("open",),
    "modality": ("processor", "build", "tensors", "soft_token_id"),
    "tokenizer": ("load",),
    "device": ("unusable",),
    "optimizer": ("build",),
    "transform": ("apply",),
    "drafter": ("build",),
    "constraint": ("build",),
    "callback": ("build",),
}
OPTIONAL_CALLABLES = (
    "save", "token_ids", "amount", "trained_part", "prepare", "operations", "free_memory", "details",
    "read_bandwidth", "check",
)
TEXTS: dict[str, tuple[str, ...]] = {
    "modality": ("placeholder", "media_keyword"),
    "device": ("target",),
}


def checked(kind: str, result: Any) -> list[Description]:
    """The descriptions that a hook returned. Raises TypeError or ValueError that says what is wrong with them."""
    hook, expected = KINDS[kind]
    if not isinstance(result, (list, tuple)):
        raise TypeError(f"{hook} returned {type(result).__name__}, a list of {expected.__name__} is expected")
    for item in result:
        if not isinstance(item, expected):
            raise TypeError(f"{hook} returned a list with {type(item).__name__}, {expected.__name__} is expected")
        _check(kind, item)
    return list(result)


def _check(kind: str, item: Any) -> None:
    name = item.name
    if not isinstance(name, str) or not name or len(name) > NAME_LIMIT or name != one_line(name) or "," in name:
        raise ValueError(f"name {one_line(repr(name), 80)}: one line of 1 to {NAME_LIMIT} characters without comma")
    if name.casefold() in RESERVED:
        raise ValueError(f"name '{name}' is reserved")
    if not isinstance(item.summary, str):
        raise TypeError(f"'{name}': summary is {type(item.summary).__name__}, str is expected")
    if not isinstance(item.priority, int):
        raise TypeError(f"'{name}': priority is {type(item.priority).__name__}, int is expected")
    for field in ("matches", *CALLABLES[kind]):
        if not callable(getattr(item, field)):
            raise TypeError(f"'{name}': {field} is not callable")
    for field in OPTIONAL_CALLABLES:
        if getattr(item, field, None) is not None and not callable(getattr(item, field)):
            raise TypeError(f"'{name}': {field} is neither None nor callable")
    for field in TEXTS.get(kind, ()):
        if not isinstance(getattr(item, field), str) or not getattr(item, field):
            raise TypeError(f"'{name}': {field} is not a non-empty string")
    if kind in ("modality", "transform", "drafter", "callback"):
        _check_options(name, item)


def _check_options(name: str, item: Any) -> None:
    options = [*item.options, item.media_option] if hasattr(item, "media_option") else [*item.options]
    for option in options:
        if not isinstance(option, Option):
            raise TypeError(f"'{name}': an option is {type(option).__name__}, Option is expected")
        if not isinstance(option.flag, str) or not option.flag.startswith("--") or not option.keyword.isidentifier():
            raise ValueError(f"'{name}': option flag {one_line(repr(option.flag), 60)} is not of the form --some-word")
    for field in ("keywords", "requires", "files"):
        values = getattr(item, field, ())
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise TypeError(f"'{name}': {field} is not a tuple of strings")
    if getattr(item, "placed", "before") not in ("before", "after"):
        raise ValueError(f"'{name}': placed is {one_line(repr(item.placed), 60)}, 'before' or 'after' is expected")
