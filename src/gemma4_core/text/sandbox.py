"""The process in which chat templates are compiled and rendered; ``gemma4_core.text.render_process`` starts it.

A template comes with a checkpoint and is not trusted. jinja2's immutable sandbox keeps it from Python's internals, and
the operating system keeps this process from filling the memory, opening files or starting programs; the parent ends it
when a rendering takes too long. Run as a script, so this module imports the standard library and jinja2 only.

Requests come on standard input: 8 bytes of length, then ``(template, values)`` by ``marshal``, which keeps tuples,
keys that are numbers, infinities and lone surrogates as they are. Replies go to standard output: 8 bytes of length,
then a JSON object with ``kind``, ``text`` and ``line``. The dialect is that of transformers 5.23.0
(``utils/chat_template_utils.py``): trimmed blocks, loop controls, the ``generation`` tag, ``tojson``,
``raise_exception``, ``strftime_now``, ``dict``, ``namespace``.
"""

# ruff: noqa: E402 - the folder of jinja2 is an argument

from __future__ import annotations

import codecs
import functools
import json
import marshal
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, BinaryIO

CACHED = 4
"""Compiled templates that are kept."""
MESSAGE = 2000
"""Characters of an error that are passed on."""

if __name__ == "__main__":
    # started without site-packages: the parent says where jinja2 is
    sys.path += sys.argv[4:]

# imported before files can no longer be opened: what jinja2 itself imports when it needs it
import pprint  # noqa: F401
import textwrap  # noqa: F401

import jinja2.debug  # noqa: F401
from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Refusal(TemplateError):
    """A template called ``raise_exception``: it does not accept these messages."""


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
    """Compiles and runs chat templates."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], cache_size=0
        )
        self.filters["tojson"] = _tojson
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": ChatDict(),
            "namespace": ChatNamespace,
        }
        del self.globals["lipsum"]


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name with a leading underscore: {name!r}")


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


# ------------------------------------------------------------------------------------------------- the process


def rendered(compiled: Callable[[str], Template], template: str, values: dict[str, Any], longest: int) -> dict:
    """The reply to one request: ``kind`` ``text``, or what went wrong and in which line of the template."""
    try:
        text = compiled(template).render(values)
    except MemoryError:
        return {"kind": "memory"}
    except Exception as fault:
        return _failure(fault)
    return {"kind": "text", "text": text} if len(text) <= longest else {"kind": "long"}


def _failure(fault: Exception) -> dict[str, Any]:
    kinds = {
        Refusal: "refusal", SecurityError: "sandbox", TemplateSyntaxError: "syntax", RecursionError: "recursion"
    }
    kind = next((name for error, name in kinds.items() if isinstance(fault, error)), "failure")
    line, trace = None, fault.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<template>" else line
        trace = trace.tb_next
    line = fault.lineno if isinstance(fault, TemplateSyntaxError) else line
    text = str(fault)[:MESSAGE]
    return {"kind": kind, "text": f"{type(fault).__name__}: {text}" if kind == "failure" else text, "line": line}


def confine(memory: int) -> None:
    """Take from this process what rendering does not need, where the system can. Not undone."""
    try:
        import resource
    except ImportError:  # Windows: the parent watches the memory
        return
    bounds = {"AS": memory, "DATA": memory, "NOFILE": 3, "FSIZE": 0, "NPROC": 0, "CORE": 0}
    for name, bound in bounds.items():
        _bound(resource, name, bound, bound)


def allow_seconds(seconds: float) -> None:
    """Let this process compute so much longer: it ends by itself where the parent is gone and cannot end it."""
    try:
        import resource
    except ImportError:
        return
    end = int(time.process_time() + seconds) + 2
    _bound(resource, "CPU", end, resource.getrlimit(resource.RLIMIT_CPU)[1])


def _bound(resource: Any, name: str, soft: int, hard: int) -> None:
    try:
        kind = getattr(resource, f"RLIMIT_{name}")
        present = resource.getrlimit(kind)[1]
        if present != resource.RLIM_INFINITY:
            soft, hard = min(soft, present), min(hard, present) if hard != resource.RLIM_INFINITY else present
        resource.setrlimit(kind, (soft, hard))
    except (AttributeError, ValueError, OSError):
        pass  # a system without this limit; the parent's own hold


def serve(requests: BinaryIO, replies: BinaryIO, memory: int, longest: int, seconds: float) -> None:
    """Answer requests until the parent closes the pipe or a rendering has used up the memory."""

    def send(reply: dict[str, Any]) -> None:
        data = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
        replies.write(len(data).to_bytes(8, "little") + data)
        replies.flush()

    time.localtime()  # reads the time zone's file
    codecs.lookup("unicode-escape")  # imports the codec of jinja2's strings
    compiled = functools.lru_cache(CACHED)(ChatEnvironment().from_string)
    confine(memory)
    send({"kind": "ready"})
    kind = ""
    while kind != "memory" and (head := requests.read(8)):
        allow_seconds(seconds)
        template, values = marshal.loads(requests.read(int.from_bytes(head, "little")))
        try:
            reply = rendered(compiled, template, values, longest)
            send(reply)
        except MemoryError:
            reply = {"kind": "memory"}
            send(reply)
        kind = reply["kind"]


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
