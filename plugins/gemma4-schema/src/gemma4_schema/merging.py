"""Several schemas that hold at once, merged into one: ``allOf``, and keywords beside ``$ref``, ``anyOf``, ``oneOf``.

Works on schemas as they were read. What may stand there several times is kept in lists: ``pattern``, ``format``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import gcd
from typing import Any

from gemma4_core import InputError

Schema = dict[str, Any]
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
LARGEST = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
SMALLEST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}


def canonical(value: Any) -> str:
    """JSON in one spelling: equal values have equal text, whole numbers without a fraction."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def merged(one: Schema, other: Schema) -> Schema | None:
    """What both allow; None where they share no type. Neither has ``$ref``, ``allOf``, ``anyOf`` or ``oneOf``."""
    found = dict(one)
    for key, value in other.items():
        if key in found and key not in ("properties", "additionalProperties", "patternProperties"):
            found[key] = _MERGERS.get(key, _numbers if key in LARGEST | SMALLEST else _last)(key, found[key], value)
        elif key not in found:
            found[key] = value
    if "type" in found and not found["type"]:
        return None
    _merge_keys(found, one, other)
    return found


def _last(key: str, one: Any, other: Any) -> Any:
    return other


def _numbers(key: str, one: Any, other: Any) -> Any:
    return max(one, other) if key in LARGEST else min(one, other)


def _types(key: str, one: list[str], other: list[str]) -> list[str]:
    def has(types: list[str], name: str) -> bool:
        return name in types or (name == "integer" and "number" in types)

    return [name for name in TYPES if has(one, name) and has(other, name)]


def _values(key: str, one: list[Any], other: list[Any]) -> list[Any]:
    known = {canonical(value) for value in other}
    return [value for value in one if canonical(value) in known]


def _joined(key: str, one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *(value for value in other if value not in one)]


def _multiple(key: str, one: Any, other: Any) -> Any:
    a, b = Fraction(str(one)), Fraction(str(other))
    scale = a.denominator * b.denominator
    x, y = int(a * scale), int(b * scale)
    least = Fraction(x * y // gcd(x, y), scale)
    return int(least) if least.denominator == 1 else float(least)


def _both(key: str, one: Any, other: Any) -> Any:
    return both(one, other)


def both(one: Any, other: Any) -> Any:
    """A schema for what two schemas allow."""
    if one is True or one == other:
        return other
    return one if other is True else {"allOf": [one, other]}


def _prefix(key: str, one: list[Any], other: list[Any]) -> list[Any]:
    raise InputError("constraint: prefixItems in several schemas that hold at once; put them into one")


_MERGERS: Mapping[str, Callable[[str, Any, Any], Any]] = {
    "type": _types, "enum": _values, "pattern": _joined, "format": _joined, "required": _joined,
    "multipleOf": _multiple, "items": _both, "prefixItems": _prefix,
    "uniqueItems": lambda key, one, other: one or other,
}


def _others(schema: Schema) -> Any:
    """The schema of a key that is not named."""
    return True if schema.get("patternProperties") else schema.get("additionalProperties", True)


def _merge_keys(found: Schema, one: Schema, other: Schema) -> None:
    """``properties`` and their kin: what one schema names must also be allowed by the other's additionalProperties."""
    ours, theirs = one.get("properties", {}), other.get("properties", {})
    properties: Schema = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        properties[name] = both(ours.get(name, _others(one)), theirs.get(name, _others(other)))
    if properties:
        found["properties"] = properties
    rest = [schema["additionalProperties"] for schema in (one, other) if "additionalProperties" in schema]
    if rest:
        found["additionalProperties"] = False if False in rest else both(*rest) if len(rest) == 2 else rest[0]
    patterns = dict(one.get("patternProperties", {}))
    for pattern, schema in other.get("patternProperties", {}).items():
        patterns[pattern] = both(patterns[pattern], schema) if pattern in patterns else schema
    if patterns:
        found["patternProperties"] = patterns
