"""Running commands in this process, a model that is not one, and a tiny checkpoint with tokenizer and template."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import CliRunner

import gemma4_core.console as console_module
from gemma4_core import LoadedModel, load_pretrained
from gemma4_core.cli import cli
from gemma4_core.config import GenerationConfig
from gemma4_core.generation.parts import Part, Stats
from gemma4_core.processing.inputs import PreparedInputs

console_module.LOG_SECONDS = float("inf")
"""Tests compare stderr, and a slow machine would leave log lines there."""
SOURCE = Path(__file__).parent.parent / "src"


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def gemma4(*args: object, stdin: str | bytes | None = None) -> Ran:
    """Run ``gemma4 args`` in this process."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, prog_name="gemma4")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


KEPT: dict[str, LoadedModel] = {}


def load_once(model: str, check: Callable[[Any], None] | None = None, **options: Any) -> LoadedModel:
    """``load_pretrained`` with one model for equal arguments, whose graphs are captured once."""
    key = repr((str(model), sorted(options.items()), os.environ.get("GEMMA4_KERNELS")))
    if key not in KEPT:
        KEPT[key] = load_pretrained(model, check=check, **options)
    elif check is not None:
        check(KEPT[key].processor)
    return KEPT[key]


def failure(*args: object, stdin: str | bytes | None = None) -> str:
    """The one line of a command that must fail."""
    ran = gemma4(*args, stdin=stdin)
    lines = [line for line in ran.err.splitlines() if line.strip()]
    assert (ran.code, ran.out, len(lines)) == (1, "", 1), ran
    assert lines[0].startswith("Error: ") and len(lines[0]) < 500
    return lines[0]


def usage(*args: object, stdin: str | bytes | None = None) -> str:
    """The last line of a usage block."""
    ran = gemma4(*args, stdin=stdin)
    assert (ran.code, ran.out) == (2, ""), ran
    lines = [line for line in ran.err.splitlines() if line.strip()]
    assert lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ") and len(lines) == 3, ran.err
    return lines[-1]


def environment(**more: str) -> dict[str, str]:
    """Of a process that runs our sources."""
    paths = [str(SOURCE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def start(code: str, *args: object, **settings: Any) -> subprocess.Popen[str]:
    """Start Python with a program text and arguments."""
    command = [sys.executable, "-c", code, *(str(arg) for arg in args)]
    return subprocess.Popen(command, text=True, env=environment(), **settings)


class Words:
    """A tokenizer to stand for one: ids are words of a list."""

    has_text = True
    special_tokens: dict[str, int] = {}  # noqa: RUF012
    vocab_size = 100


STATS = Stats(7, 3, 2, 0.5, 0.25, 1.0, 12_000_000, {})


class FakeStream:
    """Parts with the statistics so far."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self.parts, self.stats = parts, STATS

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> Part:
        return next(self.parts)


class FakePrompt(PreparedInputs):
    """A prompt that remembers what it was made of."""

    prompt: Any
    asked: dict[str, Any]


class FakeProcessor:
    """Prepares no prompt, and tells what it was given."""

    def __init__(self, model: FakeModel) -> None:
        self.template, self.tokenizer = model.template, SimpleNamespace(inner=model.tokenizer)
        sizes = SimpleNamespace(vocab_size=2048, max_position_embeddings=4096)
        path = model.context.path
        self.context = SimpleNamespace(folder=path, path=path, config=SimpleNamespace(text_config=sizes))

    def prepare_inputs(self, prompt: Any, **asked: Any) -> FakePrompt:
        made = FakePrompt([2])
        object.__setattr__(made, "prompt", prompt)
        object.__setattr__(made, "asked", asked)
        return made


class FakeModel:
    """Answers with given parts; remembers what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Iterator[Part]] | None = None) -> None:
        self.answer = answer or (lambda asked: parts("Hello", " world"))
        self.asked: list[dict[str, Any]] = []
        self.tokenizer: Any = Words()
        self.template: Any = SimpleNamespace(path=Path("chat_template.jinja"))
        self.context = SimpleNamespace(folder=Path("/models/fake"), path=Path("/models/fake"), config=None)
        self.generation_config = GenerationConfig((1,), 0, 2)
        self.tower_specs: list[Any] = []
        self.device_name, self.format_name = "fake", "bf16"
        self.operations = SimpleNamespace(name="portable")
        self.invalidated = 0
        self.caches: list[Any] = []

    @property
    def processor(self) -> FakeProcessor:
        """What prepares prompts for it."""
        return FakeProcessor(self)

    def make_cache(self, max_context: int | None = None) -> Any:
        cache = SimpleNamespace(resets=0)
        cache.reset = lambda: setattr(cache, "resets", cache.resets + 1)
        self.caches.append(cache)
        return cache

    def invalidate(self) -> None:
        self.invalidated += 1

    def stream_generate(self, prompt_or_messages: Any = None, max_new_tokens: int | None = None, **asked: Any) -> Any:
        if isinstance(prompt_or_messages, FakePrompt):
            asked, prompt_or_messages = asked | prompt_or_messages.asked, prompt_or_messages.prompt
        elif isinstance(prompt_or_messages, PreparedInputs):
            asked["prompt_tokens"], prompt_or_messages = prompt_or_messages.input_ids, None
        if isinstance(prompt_or_messages, list):
            prompt_or_messages = [dict(message) for message in prompt_or_messages]
        asked |= {"prompt": prompt_or_messages, "max_new_tokens": max_new_tokens}
        self.asked.append(asked)
        return FakeStream(self.answer(asked))


def parts(*texts: str, kinds: Sequence[str] = (), finish: str | None = "stop") -> Iterator[Part]:
    """Parts of an answer: texts with their kinds, then the last one with statistics."""
    for number, text in enumerate(texts):
        yield Part(text, kinds[number] if kinds else "text", token=10 + number, logprob=-0.5)
    if finish is not None:
        yield Part("", finish_reason=finish, stats=STATS)
