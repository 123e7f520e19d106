"""The jinja2 environment of chat templates: transformers' dialect, and bounds on time and size.

A template comes with a checkpoint and is not trusted. jinja2's immutable sandbox keeps it from Python's internals;
this environment also keeps it from running for ever or filling the memory. Every loop turn, macro, call, filter and
arithmetic operation is counted against a clock, everything written is added up, and an operation that makes text grow
is weighed before it runs. The dialect is that of transformers 5.23.0 (``utils/chat_template_utils.py``): trimmed
blocks, loop controls, the ``generation`` tag, ``tojson``, ``raise_exception``, ``strftime_now``, ``dict``,
``namespace``.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import GeneratorType
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

SECONDS = 10.0
CHARACTERS = 1 << 26
"""Of one value, and of everything written. The longest context holds a few million."""
BITS = 1 << 16
"""Of a whole number."""
ITEM = 128
"""What an item of a list or map counts beside its characters."""
_LIGHT = frozenset(("length", "count", "first", "last", "default", "d"))
"""Filters that neither read all of their value nor make a larger one."""
_GROWING = frozenset(
    (
        "replace", "join", "center", "indent", "wordwrap", "format", "tojson", "batch", "slice", "urlize", "xmlattr",
        "truncate", "round", "ljust", "rjust", "zfill", "expandtabs", "translate", "format_map", "pprint",
    )
)  # fmt: skip
"""Filters and text methods whose result may be as long as their value times their arguments."""


class TemplateLimit(Exception):
    """A template runs too long or makes too much."""


class Refusal(TemplateError):
    """A template called ``raise_exception``: it does not accept these messages."""


class Limits:
    """What one rendering has used."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + SECONDS
        self._written = 0

    def charge(self, characters: int) -> bool:
        """Count a step that writes so many characters; always true. Raises TemplateLimit."""
        self._written += characters
        if self._written > CHARACTERS:
            raise TemplateLimit(f"it writes more than {CHARACTERS >> 20} million characters")
        if time.monotonic() > self._deadline:
            raise TemplateLimit(f"it runs longer than {SECONDS:g} seconds")
        return True


def weigh(value: Any) -> int:
    """About how many characters a value has when written, counting shared parts each time; stops at the limit."""
    total, waiting = 0, [iter((value,))]
    while waiting and total <= CHARACTERS:
        item = next(waiting[-1], waiting)
        if item is waiting:  # the end of one list or map
            waiting.pop()
            continue
        if isinstance(item, str | bytes):
            total += len(item)
            continue
        total += ITEM
        if isinstance(item, int):
            total += item.bit_length() // 3
        elif isinstance(item, Mapping):
            waiting.append(iter([*item.keys(), *item.values()]))
        elif isinstance(item, list | tuple | set | frozenset | range | type({}.items()) | type({}.values())):
            waiting.append(iter(item))
    return total


class ChatNamespace(Namespace):
    """A template's namespace, without underscored names and with a short ``repr``."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class ChatDict:
    """``dict(…)`` and ``dict.fromkeys`` in a template, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks an answer for training; rendering writes its inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(list(parser.parse_statements(("name:endgeneration",), drop_needle=True)), lineno=line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates. ``limits`` belongs to the rendering under way."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], optimized=False,
            finalize=_finalize, cache_size=0,
        )
        self.limits = Limits()
        self.filters["tojson"] = _tojson
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": ChatDict(),
            "namespace": ChatNamespace,
        }
        del self.globals["lipsum"]

    def prepared(self, source: str) -> Template:
        """Compile a template with its counters. Raises jinja2's TemplateSyntaxError."""
        tree = _Counters(self).visit(self.parse(source))
        return Template.from_code(self, self.compile(tree, filename="<template>"), self.make_globals(None))

    def charge(self, characters: int = 0) -> bool:
        """Count a step. Raises TemplateLimit."""
        return self.limits.charge(characters)

    def joined(self, *parts: Any) -> str:
        """The ``~`` operator; ``call`` runs it."""
        return str_join(parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if __obj == __self.charge:
            return __self.charge(*args)
        __self.charge()
        if __obj == __self.joined:
            _require(sum(map(weigh, args)))
            return markup_join(args) if __context.eval_ctx.autoescape else str_join(args)
        method = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str) and name in _GROWING:
            args = tuple(_listed(args))
            _weigh_growth(name, owner, args, kwargs)
        return _kept(super().call(__context, __obj, *args, **kwargs))

    def call_test(self, *args: Any, **kwargs: Any) -> Any:
        self.charge()
        return super().call_test(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.charge()
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            _require_bits(bits * abs(right) if operator == "**" else bits + right.bit_length())
        elif operator == "*":
            number, other = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(number, int) and isinstance(other, str | list | tuple):
                _require(weigh(other) * max(number, 0))
        elif operator == "+":
            _require(weigh(left) + weigh(right))
        elif operator == "%" and isinstance(left, str):
            _weigh_growth("format", left, (right,), {})
        return super().call_binop(context, operator, left, right)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            if name in _LIGHT:
                return function(*args, **kwargs)
            args = (*args[:skipped], *_listed(args[skipped:]))
            value, *rest = args[skipped:] or (None,)
            if name in _GROWING:
                _weigh_growth(name, value, rest, kwargs)
            else:
                _require(weigh(value))
            return _kept(function(*args, **kwargs))

        return bounded


class _Counters(NodeTransformer):
    """Puts a count into every loop turn, macro and output, and weighs what ``~`` joins."""

    def __init__(self, environment: ChatEnvironment) -> None:
        self._environment = environment

    def _call(self, name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        call.set_lineno(line, override=True).set_environment(self._environment)
        return call

    def _count(self, line: int, characters: int = 0) -> nodes.ExprStmt:
        statement = nodes.ExprStmt(self._call("charge", [nodes.Const(characters)], line))
        statement.set_lineno(line).set_environment(self._environment)
        return statement

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        written = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [self._count(node.lineno, written), node] if written else [node]

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body = [self._count(node.lineno), *node.body]
        if node.test is not None:
            node.test = nodes.And(self._call("charge", [], node.lineno), node.test, lineno=node.lineno)
            node.test.set_environment(self._environment)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body = [self._count(node.lineno), *node.body]
        return node

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return self._call("joined", node.nodes, node.lineno)


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Everything that a template writes passes here."""
    size = weigh(value)
    context.environment.charge(size)  # type: ignore[attr-defined]
    return value


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name with a leading underscore: {name!r}")


def _require(characters: int) -> None:
    if characters > CHARACTERS:
        raise TemplateLimit(f"it makes a value of more than {CHARACTERS >> 20} million characters")


def _require_bits(bits: int) -> None:
    if bits > BITS:
        raise TemplateLimit(f"it makes a number of more than {BITS} bits")


def _weigh_growth(name: str, value: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Bound the result of an operation by its value's size times its arguments'."""
    further = [*args, *kwargs.values()]
    if name in ("format", "format_map"):
        template = str(value)
        # a width is written in the template, or is an argument where * or a nested field asks for it
        widths = sum(int(digits[:12]) for digits in re.findall("[0-9]+", template))
        nested = "*" in template or re.search(r"\{[^{}]*\{", template) is not None
        _require((weigh(value) + widths) * (1 + sum(map(_extent if nested else weigh, further))))
    else:
        _require(weigh(value) * (1 + sum(map(_extent, further))))


def _extent(argument: Any) -> int:
    """How much an argument may multiply a text: a number by itself, anything else by its size."""
    if isinstance(argument, tuple):
        return sum(map(_extent, argument))
    return abs(argument) if isinstance(argument, int) else weigh(argument)


def _kept(value: Any) -> Any:
    if isinstance(value, str):
        _require(len(value))
    return value


def _listed(values: Iterable[Any]) -> Iterator[Any]:
    """Values with generators, whose size nobody knows, made lists."""
    return (list(value) if isinstance(value, GeneratorType) else value for value in values)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    """transformers' filter: jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise Refusal(message if isinstance(message, str) and not isinstance(message, Undefined) else str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
