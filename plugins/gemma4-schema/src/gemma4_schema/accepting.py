"""Whether a node allows a value, and whether what is made from one node could be allowed by another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any

from gemma4_schema.merging import canonical
from gemma4_schema.nodes import (
    ANYTHING,
    Array,
    Boolean,
    Choice,
    Constants,
    Node,
    Null,
    Number,
    Object,
    Reference,
    Text,
    kind_of,
)
from gemma4_schema.regexes import matches_text

Definitions = Mapping[str, Node]


def accepts(node: Node, value: Any, definitions: Definitions) -> bool:
    """Whether a node allows a parsed value."""
    while isinstance(node, Reference):
        if node.name == ANYTHING:
            return True
        node = definitions[node.name]
    kind = kind_of(value)
    match node:
        case Choice(options):
            return any(accepts(option, value, definitions) for option in options)
        case Constants(values):
            return canonical(value) in values
        case Null():
            return kind == "null"
        case Boolean():
            return kind == "boolean"
        case Number():
            return kind in ("integer", "number") and _in_bounds(node, Decimal(str(value)), kind)
        case Text():
            return kind == "string" and node.low <= len(value) <= (node.high if node.high is not None else len(value)) \
                and matches_text(node, value)
        case Array():
            return kind == "array" and _array(node, value, definitions)
        case Object():
            return kind == "object" and _object(node, value, definitions)
    return False


def _in_bounds(node: Number, value: Decimal, kind: str) -> bool:
    if node.low is not None and (value < node.low or (node.low_open and value == node.low)):
        return False
    if node.high is not None and (value > node.high or (node.high_open and value == node.high)):
        return False
    return (kind == "integer" or not node.integer) and (node.multiple is None or value % node.multiple == 0)


def _array(node: Array, value: list[Any], definitions: Definitions) -> bool:
    if not node.low <= len(value) <= (node.high if node.high is not None else len(value)):
        return False
    if node.unique and len({canonical(item) for item in value}) < len(value):
        return False
    nodes = [*node.prefix[: len(value)], *[node.items] * (len(value) - len(node.prefix))]
    return all(accepts(one, item, definitions) for one, item in zip(nodes, value, strict=True))


def _object(node: Object, value: dict[str, Any], definitions: Definitions) -> bool:
    count = node.low <= len(value) <= (node.high if node.high is not None else len(value))
    if not count or not node.required <= value.keys():
        return False
    for key, item in value.items():
        nodes = [node.properties[key]] if key in node.properties else []
        nodes += [one for pattern, one in node.patterns if matches_text(Text(patterns=(pattern,)), key)]
        if not all(accepts(one, item, definitions) for one in nodes or [node.extra]):
            return node.open and not nodes
    return True


class Exclusion:
    """Whether values made from one node are never allowed by another one. Where that cannot be shown the answer is no,
    which refuses the ``oneOf``."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._asked: set[tuple[int, int]] = set()

    def all_exclusive(self, options: tuple[Node, ...]) -> tuple[int, int] | None:
        """None where each value fits one option alone, else two options that both might fit."""
        for (i, one), (j, other) in combinations(enumerate(options), 2):
            if not (self.excludes(one, other) and self.excludes(other, one)):
                return i, j
        return None

    def excludes(self, made: Node, other: Node) -> bool:
        """Whether no value made from ``made`` is allowed by ``other``."""
        made, other = self._followed(made), self._followed(other)
        if isinstance(made, Reference) or isinstance(other, Reference):
            return False
        pair = (id(made), id(other))
        if pair in self._asked:  # recursion: nothing was shown on the way
            return False
        self._asked.add(pair)
        try:
            return self._excludes(made, other)
        finally:
            self._asked.discard(pair)

    def _followed(self, node: Node) -> Node:
        for _ in range(100):
            if not isinstance(node, Reference) or node.name == ANYTHING:
                return node
            node = self._definitions[node.name]
        return Reference(ANYTHING)

    def _excludes(self, made: Node, other: Node) -> bool:
        if isinstance(made, Choice):
            return all(self.excludes(option, other) for option in made.options)
        if isinstance(made, Constants):
            return not any(accepts(other, json.loads(text), self._definitions) for text in made.values)
        if isinstance(other, Choice):
            return all(self.excludes(made, option) for option in other.options)
        if isinstance(other, Constants):
            return not any(accepts(made, json.loads(text), self._definitions) for text in other.values)
        if isinstance(made, Object) and isinstance(other, Object):
            return self._objects(made, other)
        if isinstance(made, Number) and isinstance(other, Number):
            return _apart(made, other) or _apart(other, made)
        if isinstance(made, Array) and isinstance(other, Array):
            short = made.high is not None and made.high < other.low
            return short or (other.high is not None and other.high < made.low)
        if isinstance(made, Text) and isinstance(other, Text):
            short = made.high is not None and made.high < other.low
            return short or (other.high is not None and other.high < made.low)
        return type(made) is not type(other)

    def _objects(self, made: Object, other: Object) -> bool:
        closed = not isinstance(made.extra, Reference | Object | Choice) and not made.patterns
        if closed and any(key not in made.properties for key in other.required):
            return True
        if not other.open and not other.patterns and any(key not in other.properties for key in made.required):
            return True
        return any(self.excludes(made.properties[key], other.properties[key])
                   for key in made.required if key in other.properties)


def _apart(one: Number, other: Number) -> bool:
    """Whether one lies below the other."""
    if one.high is None or other.low is None:
        return False
    return one.high < other.low or (one.high == other.low and (one.high_open or other.low_open))
