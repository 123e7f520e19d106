"""From nodes to a grammar in llguidance's Lark, in one of the spellings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gemma4_core import InputError
from gemma4_schema.nodes import Array, Boolean, Choice, Constants, Never, Node, Null, Number, Object, Reference, Text
from gemma4_schema.numerals import numeral, values
from gemma4_schema.recursion import Recursion
from gemma4_schema.regexes import check_terminal, literal, slashed
from gemma4_schema.spelling import Spelling, constant

MOST_FLAGS = 60
"""Keys, or values of a list without repetitions, that may come in any order: they are bits of a number."""


class GrammarWriter:
    """The rules and terminals of one grammar. Several schemas may go into it."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        self._rules: dict[str, str] = {}
        """Bodies of rules by name."""
        self._named: dict[str, str] = {}
        """Names of rules by body: equal ones are one rule."""
        self._terminals: dict[str, str] = {}
        self._schemas = 0

    def grammar(self, start: str) -> str:
        """The whole grammar; ``start`` is what its answers are."""
        rules = [f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())]
        return "\n".join([*rules, *(f"{name}: {body}" for body, name in self._terminals.items())]) + "\n"

    def terminal(self, expression: str, checked: bool = False) -> str:
        """The name of a terminal. Raises InputError for a ``checked`` one that matches nothing."""
        if expression not in self._terminals:
            if checked:
                check_terminal(expression)
            self._terminals[expression] = f"T{len(self._terminals)}"
        return self._terminals[expression]

    def rule(self, body: str) -> str:
        """The name of a rule with this body."""
        if body not in self._named:
            self._named[body] = f"r{len(self._named)}"
            self._rules[self._named[body]] = body
        return self._named[body]

    def parameterised(self, bodies: Mapping[str, Sequence[str]]) -> None:
        """Rules that depend on a number, by name, with their alternatives."""
        for name, alternatives in bodies.items():
            self._rules[f"{name}::_"] = "\n    | ".join(alternatives)

    def prefix(self) -> str:
        """The beginning of names that nothing else in the grammar has."""
        self._schemas += 1
        return f"s{self._schemas}"

    def schema(self, node: Node, definitions: Mapping[str, Node]) -> str | None:
        """What a schema allows, as a piece of a rule; None where that is nothing."""
        return _Schema(self, definitions).written(node)


class _Schema:
    """One schema on its way into a grammar."""

    def __init__(self, writer: GrammarWriter, definitions: Mapping[str, Node]) -> None:
        self._writer, self._definitions, self._prefix = writer, definitions, writer.prefix()
        self._spelling, self._recursion = writer.spelling, Recursion(definitions)
        self._later: list[tuple[str, str, int]] = []
        self._known: set[str] = set()
        self._count = 0

    def written(self, node: Node) -> str | None:
        found = self._value(node, self._recursion.levels)
        while self._later:
            rule, name, level = self._later.pop()
            body = self._value(self._definitions[name], level)
            assert body is not None
            self._writer._rules[rule] = body
        return found

    # ------------------------------------------------------------------------------------------- values

    def _value(self, node: Node, level: int) -> str | None:
        """A value, at most so many levels of recursion deep; None where there is none."""
        if self._recursion.height(node) > level:
            return None
        match node:
            case Null():
                return '"null"'
            case Boolean():
                return '("true" | "false")'
            case Number():
                return self._number(node)
            case Text():
                return self._spelling.text(node, self._writer)
            case Constants(texts):
                return self._writer.rule(" | ".join(constant(json.loads(text), self._spelling) for text in texts))
            case Reference(name):
                return self._reference(name, level)
            case Choice(options):
                found = dict.fromkeys(one for option in options if (one := self._value(option, level)) is not None)
                return self._writer.rule(" | ".join(found))
            case Array():
                return self._array(node, level)
            case Object():
                return self._object(node, level)
        return None

    def _reference(self, name: str, level: int) -> str:
        level -= self._recursion.recursive(name)
        deep = self._recursion.recursive(name) or self._recursion.deepens(self._definitions[name])
        rule = f"{self._prefix}_{name}_{level}" if deep else f"{self._prefix}_{name}"
        if rule not in self._known:
            self._known.add(rule)
            self._later.append((rule, name, level))
        return rule

    def _number(self, node: Number) -> str:
        few = values(node) if node.multiple is not None else None
        if few is not None:
            return self._writer.rule(" | ".join(map(literal, few)))
        found = numeral(node, self._spelling.exponents)
        if isinstance(found, str):
            return self._writer.rule(f"%json {found}")
        return self._writer.terminal(" & ".join(f"/{slashed(part)}/" for part in found))

    # ------------------------------------------------------------------------------------------- lists

    def _array(self, node: Array, level: int) -> str:
        if node.unique and node.high != 1:
            return self._distinct(node)
        item = self._value(node.items, level)
        high = node.high
        if item is None:
            high = len(node.prefix) if high is None else min(high, len(node.prefix))
        prefix = [self._value(one, level) for one in node.prefix[:high]]
        if None in prefix:
            high = prefix.index(None)
            prefix = prefix[:high]
        rest = max(node.low - len(prefix), 0), None if high is None else high - len(prefix)
        if not prefix:
            return self._writer.rule(self._repeated(item, *rest))
        body = repetition(f'"," {item}', *rest) if item is not None else ""
        for number in range(len(prefix) - 1, -1, -1):
            body = f'{prefix[number]} {body}' if number == 0 else f'"," {prefix[number]} {body}'
            body = f"({body})?" if number >= node.low else body
        return self._writer.rule(f'"[" {body} "]"')

    @staticmethod
    def _repeated(item: str | None, low: int, high: int | None) -> str:
        if item is None or high == 0:
            return '"[]"'
        more = repetition(f'"," {item}', max(low - 1, 0), None if high is None else high - 1)
        return f'"[" {item} {more} "]"' + (' | "[]"' if low == 0 else "")

    def _distinct(self, node: Array) -> str:
        """A list in which no value occurs twice."""
        texts = None if node.prefix else self._few(node.items)
        if texts is None:
            raise InputError("constraint: uniqueItems can be kept for items of an enum, or of few values, "
                             "alone; leave it out, or list the values")
        if len(texts) < node.low:
            raise InputError(f"constraint: minItems {node.low} with uniqueItems, and only {len(texts)} "
                             "different values")
        name, count = self._next(), len(texts)
        high = count if node.high is None else min(node.high, count)
        more = f"bit_count_lt([0:{count}], {high})"
        items = [f"{constant(json.loads(text), self._spelling)} {name}b::set_bit({i}) %if bit_clear({i})"
                 for i, text in enumerate(texts)]
        self._writer.parameterised({
            f"{name}a": items,
            f"{name}b": [f'"]" %if bit_count_ge([0:{count}], {max(node.low, 1)})', f'"," {name}a::_ %if {more}'],
        })
        return self._writer.rule(f'"[" {name}a::0x0' + (' | "[]"' if node.low == 0 else ""))

    def _few(self, node: Node) -> list[str] | None:
        """All values of a node, where they are few."""
        match node:
            case Constants(texts):
                found: list[str] | None = list(texts)
            case Boolean():
                found = ["true", "false"]
            case Null():
                found = ["null"]
            case Number():
                found = values(node)
            case Reference(name) if not self._recursion.recursive(name):
                found = self._few(self._definitions[name])
            case Choice(options):
                each = [self._few(option) for option in options]
                found = None if None in each else list(dict.fromkeys(text for one in each for text in one or ()))
            case Never():
                found = []
            case _:
                found = None
        return found if found is not None and len(found) <= MOST_FLAGS else None

    # ------------------------------------------------------------------------------------------- maps

    def _object(self, node: Object, level: int) -> str:
        pairs: dict[str, str] = {}
        for name, value in node.properties.items():
            found = self._value(value, level)
            if found is not None:
                pairs[name] = f"{self._spelling.key(name)} {found}"
        others = self._others(node, level)
        optional = len(pairs) - len(node.required)
        counted = node.low > len(node.required) or (node.high is not None and node.high < len(pairs))
        if optional and counted:
            others = []
            if len(pairs) < node.low or len(pairs) > MOST_FLAGS:
                raise InputError(f"constraint: minProperties {node.low} and maxProperties {node.high} cannot "
                                 "be kept here; require the keys that are needed")
        bounded = others and (node.high is not None or node.low > len(node.required))
        if (optional and counted) or (not self._spelling.ordered and not bounded and 0 < len(pairs) <= MOST_FLAGS):
            return self._in_any_order(node, pairs, others)
        return self._in_order(node, pairs, others)

    def _others(self, node: Object, level: int) -> list[str]:
        """Keys that are not named, with their values."""
        taken, patterns = list(node.properties), [pattern for pattern, _ in node.patterns]
        found = []
        for number, (pattern, one) in enumerate([*node.patterns, (None, node.extra)]):
            value = self._value(one, level)
            if value is not None:
                others = [other for i, other in enumerate(patterns) if i != number]
                key = self._spelling.other_key(pattern, taken, others, self._writer)
                found.append(f"{key} {value}")
        return found

    def _in_order(self, node: Object, pairs: Mapping[str, str], others: Sequence[str]) -> str:
        """Keys as the schema has them, others behind them."""
        low = max(node.low - len(pairs), 0)
        if low > 1:
            raise InputError(f"constraint: minProperties {node.low} cannot be kept where two or more keys are "
                             "not named; name them in properties")
        if low and not others:
            raise InputError(f"constraint: minProperties {node.low}, and only {len(pairs)} keys are allowed")
        high = None if node.high is None else node.high - len(pairs)
        more = self._writer.rule(" | ".join(others)) if others and high != 0 else None
        rest = repetition(f'"," {more}', low, high) if more is not None else ""
        first = ""  # what may stand where no key came before
        if more is not None:
            again = repetition(f'"," {more}', max(low - 1, 0), None if high is None else high - 1)
            first = f"{more} {again}" if low else f"({more} {again})?"
        for name in reversed(list(pairs)):
            pair, nothing = pairs[name], first or '""'
            if name in node.required:
                first, rest = f"{pair} {rest}", self._writer.rule(f'"," {pair} {rest}')
            else:
                first = self._writer.rule(f"{pair} {rest} | {nothing}")
                rest = self._writer.rule(f'("," {pair})? {rest}')
        return self._writer.rule(f'"{{" {first} "}}"')

    def _in_any_order(self, node: Object, pairs: Mapping[str, str], others: Sequence[str]) -> str:
        """Keys in any order, each once. Others come once all that are required are there: before, a model that drifts
        might never get to those."""
        keys = sorted(pairs, key=lambda key: key not in node.required)
        count, needed, name = len(keys), len(node.required), self._next()
        ends = [f"is_ones([0:{needed}])"] if needed else []
        ends += [f"bit_count_ge([0:{count}], {node.low})"] if node.low > needed else []
        full = node.high is not None and node.high < count
        more = [f"not(is_ones([0:{count}]))"] if not others else []
        more += [f"bit_count_lt([0:{count}], {node.high})"] if full else []
        complete = [f"is_ones([0:{needed}])"] if needed else []
        items = []
        for i, key in enumerate(keys):
            wanted = [f"bit_clear({i})", *(complete if full and i >= needed else [])]
            items.append(f"{pairs[key]} {name}b::set_bit({i}){_condition(wanted)}")
        self._writer.parameterised({
            f"{name}a": [*items, *(f"{pair} {name}b::_{_condition(complete)}" for pair in others)],
            f"{name}b": [f'"}}"{_condition(ends)}', f'"," {name}a::_{_condition(more)}'],
        })
        return self._writer.rule(f'"{{" {name}a::0x0' + ("" if ends else ' | "{}"'))

    def _next(self) -> str:
        self._count += 1
        return f"{self._prefix}_o{self._count}"


def _condition(parts: Sequence[str]) -> str:
    if not parts:
        return ""
    found = parts[0]
    for part in parts[1:]:
        found = f"and({found}, {part})"
    return f" %if {found}"


def repetition(item: str, low: int, high: int | None) -> str:
    """A piece of a rule repeated."""
    if high == 0:
        return ""
    return f"({item}){{{low},{'' if high is None else high}}}"
