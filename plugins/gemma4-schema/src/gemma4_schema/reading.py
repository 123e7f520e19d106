"""From a JSON schema to nodes: references followed, schemas that hold at once merged, what cannot be kept refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from gemma4_core import InputError
from gemma4_core.formatting import shown
from gemma4_schema.keywords import COMBINING, fault, listed, normal
from gemma4_schema.merging import Schema, both, canonical, merged
from gemma4_schema.nodes import (
    ANYTHING,
    Array,
    Boolean,
    Choice,
    Constants,
    Never,
    Node,
    Null,
    Number,
    Object,
    Reference,
    Text,
    any_definition,
)
from gemma4_schema.numerals import values as numbers_of
from gemma4_schema.numerals import whole_bounds
from gemma4_schema.regexes import matches_text

SIZE_LIMIT = 64 << 10
"""Characters of a schema as JSON."""
DEPTH_LIMIT = 64
"""Objects and lists of a schema inside each other."""
MOST_DEFINITIONS = 2000
MOST_ALTERNATIVES = 200
"""Combinations of ``anyOf`` with keywords beside it."""


def checked_size(schema: Any, where: str = "json_schema") -> None:
    """Raise InputError for what is no JSON schema, is too long or too deep."""
    if not isinstance(schema, Mapping | bool):
        raise InputError(f"constraint {where} {shown(schema, 60)}: must be a JSON schema (an object)")
    if _depth(schema) > DEPTH_LIMIT:
        raise InputError(f"constraint {where}: more than {DEPTH_LIMIT} objects and lists inside each other")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise InputError(f"constraint {where}: holds what JSON cannot: {error}") from error
    if size > SIZE_LIMIT:
        raise InputError(f"constraint {where}: {size} bytes of JSON, more than {SIZE_LIMIT}; make it smaller")


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted no further than beyond the limit; one that holds itself ends there."""
    level, depth = [value], 0
    while level and depth <= DEPTH_LIMIT:
        inside = [item for one in level if isinstance(one, Mapping | list | tuple)
                  for item in (one.values() if isinstance(one, Mapping) else one)]
        if len(inside) > SIZE_LIMIT:
            return DEPTH_LIMIT + 1
        level, depth = inside, depth + bool(level)
    return depth


class SchemaReader:
    """Reads one schema and what its references name."""

    def __init__(self, root: Any, where: str = "json_schema") -> None:
        self.root, self.where = root, where
        self.definitions: dict[str, Node] = {ANYTHING: any_definition()}
        self._names: dict[str, str] = {}
        """Definitions by the canonical text of their schema."""
        self.exclusive: list[tuple[str, tuple[Node, ...]]] = []
        """Options of ``oneOf`` that must exclude each other, with their places."""
        self._later: list[tuple[str, Any, str]] = []
        self._anchors: dict[str, Any] | None = None

    def read(self) -> Node:
        """The root; ``definitions`` are those that it refers to. Raises InputError."""
        found = self._node(self.root, self.where)
        while self._later:
            name, schema, where = self._later.pop()
            self.definitions[name] = self._whole(schema, where)
        return found

    # ------------------------------------------------------------------------------------------- schemas

    def _node(self, schema: Any, where: str) -> Node:
        """A schema inside another one: small ones as they are, others by reference."""
        if schema is True or schema == {}:
            return Reference(ANYTHING)
        if schema is False:
            return Never()
        if not isinstance(schema, Mapping):
            raise fault(where, f"{shown(schema, 60)} must be a schema (an object)")
        if not any(key in schema for key in (*COMBINING, "properties", "items", "prefixItems")):
            return self._whole(schema, where)
        key = canonical(schema)
        if key not in self._names:
            if len(self._names) >= MOST_DEFINITIONS:
                raise fault(where, f"more than {MOST_DEFINITIONS} different parts come of its references")
            self._names[key] = f"d{len(self._names)}"
            self._later.append((self._names[key], schema, where))
        return Reference(self._names[key])

    def _whole(self, schema: Mapping[str, Any], where: str) -> Node:
        lone = self._lone(schema)
        if lone in ("anyOf", "oneOf"):
            options = tuple(self._node(one, f"{where}.{lone}[{i}]")
                            for i, one in enumerate(listed(schema[lone], f"{where}.{lone}")))
            if lone == "oneOf":
                self.exclusive.append((where, options))
            return Choice(options)
        if lone == "$ref":
            return self._node(self._resolved(schema["$ref"], where), where)
        plain = self._alternatives(schema, where, ())
        return _any_of([self._plain(one, where) for one in plain])

    @staticmethod
    def _lone(schema: Mapping[str, Any]) -> str | None:
        """The combining keyword that a schema consists of."""
        found = [key for key in COMBINING if key in schema]
        return found[0] if len(found) == 1 and not normal(schema, "") else None

    def _alternatives(self, schema: Any, where: str, seen: tuple[str, ...]) -> list[Schema]:
        """The schema as alternatives without combining keywords."""
        if isinstance(schema, bool):
            return [{}] if schema else []
        if not isinstance(schema, Mapping):
            raise fault(where, f"{shown(schema, 60)} must be a schema (an object)")
        found = [normal(schema, where)]
        parts: list[list[Schema]] = []
        if "$ref" in schema:
            ref = str(schema["$ref"])
            if ref in seen:
                raise fault(where, f"$ref {shown(ref, 80)} leads back to itself without end")
            parts.append(self._alternatives(self._resolved(ref, where), where, (*seen, ref)))
        for i, one in enumerate(listed(schema.get("allOf", []), f"{where}.allOf")):
            parts.append(self._alternatives(one, f"{where}.allOf[{i}]", seen))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                options = [self._alternatives(one, f"{where}.{key}[{i}]", seen)
                           for i, one in enumerate(listed(schema[key], f"{where}.{key}"))]
                if key == "oneOf":
                    self._exclude([[both for one in option if (both := merged(found[0], one)) is not None]
                                   for option in options], where)
                parts.append([one for option in options for one in option])
        for part in parts:
            if len(found) * len(part) > MOST_ALTERNATIVES:
                raise fault(where, f"more than {MOST_ALTERNATIVES} combinations of anyOf; say it in fewer")
            found = [both for one in found for other in part if (both := merged(one, other)) is not None]
        return found

    def _exclude(self, options: list[list[Schema]], where: str) -> None:
        nodes = tuple(_any_of([self._plain(one, where) for one in option]) for option in options)
        self.exclusive.append((where, nodes))

    def _resolved(self, ref: Any, where: str) -> Any:
        """What a reference names inside this schema. Raises InputError; nothing is ever fetched."""
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise fault(where, f"$ref {shown(ref, 100)} leads out of the schema, and nothing is fetched; put it into "
                               "$defs and refer to \"#/$defs/…\"")
        here: Any = self.root
        if ref != "#" and not ref.startswith("#/"):
            here = self._anchor(ref[1:])
            if here is None:
                raise fault(where, f"$ref {shown(ref, 100)} names nothing in the schema")
            return here
        for part in ref[2:].split("/") if ref != "#" else ():
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            index = int(part) if isinstance(here, list) and part.isascii() and part.isdigit() else -1
            inside = isinstance(here, Mapping) and part in here
            if not inside and not (isinstance(here, list) and 0 <= index < len(here)):
                raise fault(where, f"$ref {shown(ref, 100)} names nothing in the schema")
            here = here[part] if inside else here[index]
        return here

    def _anchor(self, name: str) -> Any:
        if self._anchors is None:
            self._anchors, level = {}, [self.root]
            while level:
                one = level.pop()
                if isinstance(one, Mapping):
                    if isinstance(one.get("$anchor"), str):
                        self._anchors.setdefault(one["$anchor"], one)
                    level += one.values()
                elif isinstance(one, list):
                    level += one
        return self._anchors.get(name)

    # ------------------------------------------------------------------------------------------- one plain schema

    def _plain(self, schema: Schema, where: str) -> Node:
        """A schema without combining keywords."""
        if not schema:
            return Reference(ANYTHING)
        if "enum" in schema:
            return self._constants(schema, where)
        types = schema.get("type", [])
        if "number" in types:
            types = [name for name in types if name != "integer"]
        return _any_of([self._of_type(name, schema, where) for name in types])

    def _constants(self, schema: Schema, where: str) -> Node:
        from gemma4_schema.accepting import accepts

        values, rest = schema["enum"], {key: value for key, value in schema.items() if key != "enum"}
        texts = dict.fromkeys(canonical(value) for value in values)
        if not rest:
            return Constants(tuple(texts)) if texts else Never()
        node = self._plain(rest, where)
        self._settle()
        kept = tuple(text for text in texts if accepts(node, json.loads(text), self.definitions))
        return Constants(kept) if kept else Never()

    def _settle(self) -> None:
        """Read what was put off, so that values can be compared with it."""
        while self._later:
            name, schema, where = self._later.pop()
            self.definitions[name] = self._whole(schema, where)

    def _of_type(self, name: str, schema: Schema, where: str) -> Node:
        makers: dict[str, Callable[[Schema, str], Node]] = {
            "array": self._array, "object": self._object, "string": self._text,
        }
        if name in makers:
            return makers[name](schema, where)
        if name in ("integer", "number"):
            return _number(name == "integer", schema)
        return Null() if name == "null" else Boolean()

    def _text(self, schema: Schema, where: str) -> Node:
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if high is not None and low > high:
            return Never()
        return Text(low, high, tuple(schema.get("pattern", ())), tuple(schema.get("format", ())))

    def _array(self, schema: Schema, where: str) -> Node:
        prefix = tuple(self._node(one, f"{where}.prefixItems[{i}]")
                       for i, one in enumerate(schema.get("prefixItems", ())))
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        given = schema.get("items", not prefix or low > len(prefix))
        items = self._node(given, f"{where}.items")
        if isinstance(items, Never):
            high = len(prefix) if high is None else min(high, len(prefix))
        if high is not None and low > high:
            return Never()
        if not any(isinstance(one, Never) for one in prefix):  # a tuple is meant, though it might be shorter
            low = max(low, len(prefix) if high is None else min(len(prefix), high))
        return Array(prefix, items, low, high, schema.get("uniqueItems", False))

    def _object(self, schema: Schema, where: str) -> Node:
        given, required = schema.get("properties", {}), schema.get("required", ())
        patterns = schema.get("patternProperties", {})
        named = any(key in schema for key in ("properties", "patternProperties", "required"))
        rest = schema.get("additionalProperties", not named)
        names = [*given, *(name for name in required if name not in given)]
        others = schema.get("additionalProperties", True)
        properties = {}
        for name in names:
            held = [one for pattern, one in patterns.items() if matches_text(Text(patterns=(pattern,)), name)]
            one = given.get(name, True if held else others)
            for other in held:
                one = both(one, other)
            properties[name] = self._node(one, f"{where}.properties.{name}")
        properties = {name: node for name, node in properties.items()
                      if name in required or not isinstance(node, Never)}
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if high is not None and max(low, len(required)) > high:
            return Never()
        extra = self._node(rest, f"{where}.additionalProperties")
        found = tuple((pattern, self._node(one, f"{where}.patternProperties")) for pattern, one in patterns.items())
        return Object(properties, frozenset(required), found, extra, low, high, others is not False)


def _number(integer: bool, schema: Schema) -> Node:
    def decimal(key: str) -> Decimal | None:
        return Decimal(str(schema[key])) if key in schema else None

    low, above, high, below = map(decimal, ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    low_open = above is not None and (low is None or above >= low)
    high_open = below is not None and (high is None or below <= high)
    low, high = above if low_open else low, below if high_open else high
    if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
        return Never()
    found = Number(integer, low, high, low_open, high_open, decimal("multipleOf"))
    first, last = whole_bounds(found)
    return Never() if (integer and first > last) or numbers_of(found) == [] else found


def _any_of(nodes: Sequence[Node]) -> Node:
    real = tuple(node for node in nodes if not isinstance(node, Never))
    return real[0] if len(real) == 1 else Choice(real) if real else Never()
