"""The keywords of one schema object, checked and brought into one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemma4_core import InputError
from gemma4_core.formatting import shown
from gemma4_schema.merging import TYPES, Schema

COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
UNSUPPORTED = (
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas",
    "dependencies", "propertyNames", "$dynamicRef", "$recursiveRef",
)
"""Keywords that a grammar cannot keep."""
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
SCHEMAS = ("items", "additionalProperties")
BELONGS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": NUMBERS,
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties",
               "maxProperties"),
}
"""Keywords that speak of one type, which is taken to be meant where a schema names none."""
MOST_PLACE = 160
"""Characters of a place in a message."""
MOST_DIGITS = 30
"""Digits of a bound."""


def fault(where: str, message: str) -> InputError:
    """The error about a part of a schema. Names of keys are whatever was written: they come on one line, clipped."""
    place = " ".join(where.split())
    place = place if len(place) <= MOST_PLACE else f"{place[:20]}…{place[20 - MOST_PLACE :]}"
    return InputError(f"constraint {place}: {message}")


def normal(schema: Mapping[str, Any], where: str) -> Schema:
    """The keywords of a schema object besides those that combine schemas, in one form: ``type``, ``enum``, ``pattern``
    and ``format`` as lists. What only describes is left out. Raises InputError."""
    given = {key: value for key, value in schema.items() if key not in COMBINING}
    for key in UNSUPPORTED:
        if key in given:
            raise fault(where, f"{key} cannot be kept while an answer is made; leave it out, or say it with anyOf, "
                               "enum and required")
    for key in ("unevaluatedProperties", "unevaluatedItems"):
        if given.get(key, False) is not False:
            raise fault(where, f"{key} may only be false; use additionalProperties")
    found: Schema = {}
    if "const" in given:
        found["enum"] = [given["const"]]
    if "enum" in given:
        values = listed(given["enum"], f"{where}.enum")
        found["enum"] = [value for value in values if "enum" not in found or value == found["enum"][0]]
    for key in ("pattern", "format"):
        if key in given:
            found[key] = [text(given[key], f"{where}.{key}")]
    _bounds(given, found, where)
    _arrays(given, found, where)
    _objects(given, found, where)
    if "type" in given:
        found["type"] = _types(given["type"], where)
    elif "enum" not in found:
        kinds = [kind for kind, keys in BELONGS.items() if any(key in found for key in keys)]
        if kinds:
            found["type"] = kinds
    return found


def _types(given: Any, where: str) -> list[str]:
    types = given if isinstance(given, list) else [given]
    known = [name.lower() if isinstance(name, str) else name for name in types]  # Gemini writes STRING
    for name, spelled in zip(known, types, strict=True):
        if name not in TYPES:
            raise fault(f"{where}.type", f"{shown(spelled, 60)} is none of {', '.join(TYPES)}")
    return [name for name in TYPES if name in known]


def _bounds(given: Mapping[str, Any], found: Schema, where: str) -> None:
    given = dict(given)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(given.get(strict), bool) and given.pop(strict) and bound in given:  # draft 4
            given[strict] = given.pop(bound)
    for key in NUMBERS:
        if key in given:
            value = given[key]
            ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not ok or abs(value) >= 10**MOST_DIGITS or (key == "multipleOf" and value <= 0):
                raise fault(f"{where}.{key}", f"{shown(value, 60)} is not a number that it can be")
            found[key] = value
    for key in COUNTS:
        if key in given:
            value = given[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
                raise fault(f"{where}.{key}", f"{shown(value, 60)} must be a whole number from 0")
            found[key] = int(value)


def _arrays(given: Mapping[str, Any], found: Schema, where: str) -> None:
    items = given.get("items")
    if isinstance(items, list):  # drafts before 2020-12
        found["prefixItems"] = items
        if "additionalItems" in given:
            found["items"] = given["additionalItems"]
    else:
        if "prefixItems" in given:
            found["prefixItems"] = listed(given["prefixItems"], f"{where}.prefixItems")
        if "items" in given:
            found["items"] = items
    if given.get("uniqueItems", False) is not False:
        found["uniqueItems"] = True


def _objects(given: Mapping[str, Any], found: Schema, where: str) -> None:
    for key in ("properties", "patternProperties"):
        if key in given:
            found[key] = dict(mapping(given[key], f"{where}.{key}"))
    if "required" in given:
        found["required"] = [text(name, f"{where}.required") for name in listed(given["required"], f"{where}.required")]
    if "additionalProperties" in given:
        found["additionalProperties"] = given["additionalProperties"]


def listed(value: Any, where: str) -> list[Any]:
    """A list. Raises InputError."""
    if not isinstance(value, list):
        raise fault(where, f"{shown(value, 60)} must be a list")
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """An object. Raises InputError."""
    if not isinstance(value, Mapping):
        raise fault(where, f"{shown(value, 60)} must be an object")
    return value


def text(value: Any, where: str) -> str:
    """Text. Raises InputError."""
    if not isinstance(value, str):
        raise fault(where, f"{shown(value, 60)} must be text")
    return value
