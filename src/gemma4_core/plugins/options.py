"""Options of plugins given in Python: unknown names and values of the wrong type are refused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from gemma4_core.contracts import Option
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.plugins.origin import nearest, one_line

TYPES: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a finite number"),
    str: ((str, os.PathLike), "text"),
}


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message about an unknown name, with the nearest known one."""
    names = sorted(known)
    return one_line(f"unknown {what} '{one_line(name, 120)}'{nearest(str(name), names)} "
                    f"({'known: ' + ', '.join(names) if names else 'there are none'})", 480)


def refuse_unknown(what: str, given: Iterable[object], known: Iterable[str]) -> None:
    """Raise InputError for the first name that is not known."""
    names = set(known)
    for name in given:
        if name not in names:
            raise InputError(unknown(what, name, names))


def check_options(given: Any, declared: Iterable[Option]) -> None:
    """Check options by keyword against those that plugins declare, and ``allow_urls``. Raises InputError."""
    if not isinstance(given, Mapping):
        raise InputError(f"options {one_line(repr(given), 120)}: give a mapping such as {{'adapter': 'folder'}}")
    options: dict[str, Option] = {}
    for option in declared:
        options.setdefault(option.keyword, option)
    refuse_unknown("option", given, {*options, "allow_urls"})
    for name, value in given.items():
        if name in options and value is not None:
            several = options[name].multiple and isinstance(value, list | tuple)
            for item in value if several else [value]:
                check_value(options[name], item)


def check_value(option: Option, value: Any) -> None:
    """Raise InputError for a value that is not of the option's type or not among its choices."""
    types, what = TYPES.get(option.type, ((object,), ""))
    fits = isinstance(value, types) and (option.type is bool or not isinstance(value, bool))
    if fits and option.type is float:
        fits = math.isfinite(value)
    if not fits:
        raise InputError(f"{option.keyword} {one_line(repr(value), 120)}: must be {what}")
    if option.choices and str(value).casefold() not in {str(choice).casefold() for choice in option.choices}:
        raise InputError(f"{option.keyword} {one_line(repr(value), 120)}: choose one of "
                         f"{', '.join(map(str, option.choices))}{nearest(str(value), map(str, option.choices))}")


def plugin_name(name: str | None) -> str | None:
    """A plugin's name, or None for automatic choice. Raises InputError for anything but text."""
    if name is not None and not isinstance(name, str):
        raise InputError(f"{shown(name)}: a plugin is named by a text such as 'bf16', or None")
    return None if name is None or name.lower() == "auto" else name
