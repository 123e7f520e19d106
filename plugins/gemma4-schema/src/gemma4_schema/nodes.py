"""What a JSON schema allows, as a few kinds of nodes; ``$ref`` are references by name, everything else is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Node:
    """A set of JSON values."""


@dataclass(frozen=True)
class Never(Node):
    """No value."""


@dataclass(frozen=True)
class Null(Node):
    """``null``."""


@dataclass(frozen=True)
class Boolean(Node):
    """``true`` and ``false``."""


@dataclass(frozen=True)
class Number(Node):
    """Numbers between bounds."""

    integer: bool = False
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    """Whether the bound itself is left out."""
    high_open: bool = False
    multiple: Decimal | None = None


@dataclass(frozen=True)
class Text(Node):
    """Strings by their number of characters and by regular expressions."""

    low: int = 0
    high: int | None = None
    patterns: tuple[str, ...] = ()
    """As JSON schemas write them: found anywhere in the text unless anchored."""
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constants(Node):
    """These values."""

    values: tuple[str, ...]
    """As canonical JSON."""


@dataclass(frozen=True)
class Array(Node):
    """Lists."""

    prefix: tuple[Node, ...] = ()
    items: Node = field(default_factory=Never)
    """Of what follows the prefix."""
    low: int = 0
    high: int | None = None
    unique: bool = False


@dataclass(frozen=True)
class Object(Node):
    """Maps."""

    properties: Mapping[str, Node] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    patterns: tuple[tuple[str, Node], ...] = ()
    """Regular expressions of further keys, with their values."""
    extra: Node = field(default_factory=Never)
    """Of all other keys."""
    low: int = 0
    high: int | None = None
    """Numbers of keys."""
    open: bool = False
    """Whether the schema allows other keys than these. None are made where it does not speak of them, so that an
    answer has the keys that its schema names."""


@dataclass(frozen=True)
class Choice(Node):
    """Any of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Reference(Node):
    """A definition by name."""

    name: str


ANYTHING = "anything"
"""Name of the definition of any value at all."""


def children(node: Node) -> list[tuple[Node, int]]:
    """The nodes inside one, each with how often it can occur at most; 1 where there is no bound."""
    if isinstance(node, Choice):
        return [(option, 1) for option in node.options]
    if isinstance(node, Array):
        rest = 1 if node.high is None else max(node.high - len(node.prefix), 0)
        return [*((item, 1) for item in node.prefix), (node.items, rest)]
    if isinstance(node, Object):
        inside = [(value, 1) for value in node.properties.values()]
        rest = 1 if node.high is None else max(node.high - len(node.required), 0)
        return [*inside, *((value, rest) for _, value in node.patterns), (node.extra, rest)]
    return []


def any_definition() -> Node:
    """Any JSON value."""
    inside = Reference(ANYTHING)
    return Choice((Null(), Boolean(), Number(), Text(), Array(items=inside), Object(extra=inside, open=True)))


def kind_of(value: Any) -> str:
    """The JSON type of a parsed value; whole numbers are integers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float | Decimal) and value == int(value)):
        return "integer"
    return {float: "number", Decimal: "number", str: "string", list: "array", dict: "object"}[type(value)]
