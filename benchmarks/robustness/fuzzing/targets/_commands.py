"""Running ``gemma4`` in this process, with a fake model, and the promises of every command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzzing.samples import write_sample
from fuzzing.targets import Broken
from fuzzing.targets._shared import ADAPTERS, Checked, plain, small_checkpoint, small_config
from fuzzing.targets.processor import media

LINE = 500
ANSWERS = ("generate", "chat")


class Model:
    """Answers every prompt with two words."""

    device_name = "none"

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, self.context = processor, processor.context
        self.tokenizer, self.template = processor.tokenizer.inner, processor.template
        self.tower_specs, self.generation_config = processor.specs, config
        self.format_name = "fake"
        self.operations = SimpleNamespace(name="fake")

    def make_cache(self, max_context: int | None = None) -> Any:
        return SimpleNamespace(reset=lambda: None, length=0, tokens=[])

    def invalidate(self) -> None:
        return None

    def stream_generate(self, prompt: Any = None, max_new_tokens: Any = None, **asked: Any) -> Iterator[Any]:
        from gemma4_core.generation.parts import Part, Stats

        yield Part("One", token=10, logprob=-0.5)
        yield Part(" two", token=11, logprob=-0.5)
        yield Part("", finish_reason="stop", stats=Stats(7, 3, 2, 0.5, 0.25, 1.0, 12_000_000, {}))


class Commands:
    """The ``gemma4`` group over files of its own: ``model``, ``towers``, ``adapter``, and small media."""

    def __init__(self) -> None:
        from tiny_model import tiny_config

        from gemma4_core import loading
        from gemma4_core.cli import failures

        self._kept = tempfile.TemporaryDirectory()
        self.root = Path(self._kept.name)
        small = small_checkpoint()
        write_sample(small, self.root / "model")
        write_sample({**small, "config.json": plain(tiny_config())}, self.root / "towers")
        write_sample({"config.json": plain(small_config())}, self.root / "bare")
        picture, sound = media()
        (self.root / "a.png").write_bytes(picture)
        (self.root / "a.wav").write_bytes(sound)
        (self.root / "tools.json").write_bytes(plain([{"type": "function", "function": {"name": "f"}}]))
        (self.root / "train.jsonl").write_bytes(b'{"text": "one two three"}\n{"prompt": "a", "completion": "b"}\n')
        (self.root / "adapter").symlink_to(ADAPTERS / "dense")
        self._load = loading.load_pretrained
        self._command = ""
        loading.load_pretrained = self.load
        self._report, self._error = failures.report, None
        failures.report = self.report

    def report(self, error: BaseException) -> None:
        """In place of ``failures.report``: record what ended the command."""
        self._error = error
        self._report(error)

    def load(self, name: str, *args: Any, check: Any = None, **asked: Any) -> Model:
        """In place of ``load_pretrained``: read everything except the weights."""
        from gemma4_core import InputError
        from gemma4_core.config import load_generation_config

        seen = []

        def look(processor: Any) -> None:
            if check is not None:
                check(processor)
            seen.append(processor)
            raise Checked

        with suppress(Checked):
            self._load(name, *args, check=look, **asked)
        if self._command not in ANSWERS:
            raise InputError(f"{name}: nothing is run here")
        return Model(seen[0], load_generation_config(seen[0].context.folder, seen[0].context.config))

    def run(self, args: Sequence[str], stdin: bytes = b"", env: Mapping[str, str] | None = None) -> None:
        """Run a command line. Raises Broken if it does not end as promised."""
        from click.testing import CliRunner

        from gemma4_core.cli import cli

        self._command, self._error = args[0] if args else "", None
        result = CliRunner(env=dict(env or {})).invoke(cli, list(args), input=stdin, prog_name="gemma4")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        try:
            check_ending(args, result.exit_code, result.stdout, result.stderr)
            if self._error is not None and not foreseen(self._error):
                raise Broken("every failure is handled", result.stderr[:700])
        except Broken as broken:
            raise broken from self._error


def check_ending(args: Sequence[str], code: int, out: str, err: str) -> None:
    """Raise Broken if exit code, stdout or stderr is not as promised."""
    lines = [line for line in err.splitlines() if line.strip()]
    seen = f"code {code}, stdout {out[:200]!r}, stderr {err[:700]!r}"
    if code not in (0, 1, 2, 130):
        raise Broken("exit codes are 0, 1, 2 and 130", seen)
    talks = not {"--stats", "--verbose", "-v"}.isdisjoint(args) or args[:1] in (["train"], ["quantize"], ["chat"])
    if code == 0 and lines and not talks:
        raise Broken("stderr is empty on success", seen)
    if code not in (1, 2):
        return
    if not lines or not lines[-1].startswith("Error: ") or len(lines[-1]) >= LINE or not lines[-1].isprintable():
        raise Broken("a failure's last line says what failed", seen)
    if code == 1 and len(lines) > 1 and args[:1] != ["chat"]:
        raise Broken("a failure is one line", seen)
    if out and args[:1] != ["chat"]:
        raise Broken("stdout is empty on failure", seen)


def foreseen(error: BaseException) -> bool:
    """Whether an error's message was written for people: ours, click's, or the system's about a file."""
    import click

    from gemma4_core import Gemma4Error

    told = isinstance(error, OSError) and error.strerror is not None and error.filename is not None
    return told or isinstance(error, Gemma4Error | click.ClickException)


def passable(text: str) -> str:
    """A string as a command line can hold it: no NUL, and bytes that are not UTF-8 as the system passes them."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogatepass"))
