"""Option types and the options that several commands share."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gemma4_core.cli import completion
from gemma4_core.cli.base import ManyOption, Text
from gemma4_core.console import console

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
LARGEST_COUNT = 1 << 27
"""The largest number of tokens; no context is longer (see ``gemma4_core.config``)."""
MAX_NEW_TOKENS = 1024
"""Default length of an answer."""


class Whole(click.ParamType):
    """A whole number in decimal digits, within bounds."""

    name = "integer"

    def __init__(self, low: int = 1, high: int = LARGEST_COUNT) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif re.fullmatch(r"[+-]?[0-9]{1,30}", text := str(value).strip()):
            number = int(text)
        else:
            self.fail(f"{clipped(value)} is not a whole number from {self.low} to {self.high}.", param, ctx)
        if not self.low <= number <= self.high:
            self.fail(f"{clipped(value)} is not in the range from {self.low} to {self.high}.", param, ctx)
        return number


class Number(click.ParamType):
    """A finite number within bounds."""

    name = "number"

    def __init__(self, low: float, high: float = math.inf, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            self.fail(f"{clipped(value)} is not a number.", param, ctx)
        if not math.isfinite(number) or not self.low <= number <= self.high or (self.above and number == self.low):
            low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
            bounds = low if self.high == math.inf else f"{low} to {self.high:g}"
            self.fail(f"{clipped(value)} is not a finite number {bounds}.", param, ctx)
        return number


class FilePath(click.ParamType):
    """A path as ``Path``. The command checks whether it exists."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completion.files(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        if not isinstance(value, str) or not value:
            self.fail(f"{clipped(value)} is not a path.", param, ctx)
        try:
            if b"\0" in os.fsencode(value):
                self.fail(f"{clipped(value)} is not a path: it has a NUL character in it.", param, ctx)
        except UnicodeEncodeError:
            self.fail(f"{clipped(value)} is not a path: it is not UTF-8 text.", param, ctx)
        return Path(value)


class TokenIds(click.ParamType):
    """Token ids separated by commas or spaces: ``2,106,1234``. The model checks them against its vocabulary."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        pieces = [piece for piece in re.split(r"[,\s]+", str(value).strip()) if piece]
        for piece in pieces:
            if not re.fullmatch(r"[+-]?[0-9]{1,30}", piece):
                self.fail(f"{clipped(piece)} is not a whole number; give ids such as 2,106,1234.", param, ctx)
        return [int(piece) for piece in pieces]


class Bias(click.ParamType):
    """What is added to the logit of an id: ``106=-5``, as a pair."""

    name = "ID=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        if isinstance(value, tuple):
            return value
        token, equals, added = str(value).partition("=")
        if not equals:
            self.fail(f"{clipped(value)} is not an id with a number, such as 106=-5.", param, ctx)
        return Whole(0).convert(token, param, ctx), Number(-1e6, 1e6).convert(added, param, ctx)


class Beam(click.ParamType):
    """Width of the kernel search, or ``max``."""

    name = "N|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from gemma4_core.devices import parse_beam
        from gemma4_core.errors import InputError

        text = str(value).strip()
        if text.lower() != "max" and not re.fullmatch(r"[0-9]{1,4}", text):
            self.fail(f"{clipped(value)} is neither a whole number from 0 nor max.", param, ctx)
        try:
            return parse_beam(text)
        except InputError as error:  # TINYGRAD_GEMMA_MAX_BEAM
            self.fail(f"{error}", param, ctx)


def clipped(value: Any, limit: int = 200) -> str:
    """A value in quotes, cut where it is long; control characters become escapes when the error is printed."""
    text = str(value)
    return f"'{text}'" if len(text) <= limit else f"'{text[:limit]}…'"


def apply(function: F, decorators: Sequence[Callable[[F], F]]) -> F:
    """Decorate so that options appear in the order given."""
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def model_option(
    required: bool = True, help: str = "Checkpoint folder, hub name (google/gemma-4-E2B-it) or alias (e2b-it)."
) -> Callable[[F], F]:
    """``--model-dir``, which is also ``--model`` and ``-m``."""
    return click.option("--model-dir", "--model", "-m", "model", required=required, metavar="MODEL", help=help,
                        shell_complete=completion.models)


def overwrite_option(what: str = "that folder") -> Callable[[F], F]:
    """``--overwrite``, which must be typed: no environment variable sets it."""
    return click.option("--overwrite", is_flag=True, allow_from_autoenv=False,
                        help=f"Replace a checkpoint in {what}; a folder with other files is never replaced.")


def tools_option(function: F) -> F:
    """``--tools``."""
    return click.option("--tools", metavar="FILE", shell_complete=completion.files,
                        help="JSON file with tool declarations for the template.")(function)


def schema_option(function: F) -> F:
    """``--schema``."""
    return click.option("--schema", metavar="FILE|JSON", shell_complete=completion.files,
                        help="JSON schema that the answer must fit: a file, or the schema itself.")(function)


def tokenizer_option(function: F) -> F:
    """``--tokenizer``."""
    return click.option("--tokenizer", default="auto", show_default=True, metavar="NAME", help="Tokenizer plugin.",
                        shell_complete=completion.plugins("tokenizers", "auto"))(function)


def format_option(default: str = "auto", help: str = "Checkpoint format plugin.") -> Callable[[F], F]:
    """``--format``, whose parameter is ``format``."""
    return click.option("--format", default=default, show_default=True, metavar="NAME", help=help,
                        shell_complete=completion.plugins("formats", "auto"))


literal_option = click.option(
    "--literal", is_flag=True,
    help="Read special tokens spelt in the prompt, the system prompt and tools as plain text.",
)


def device_options(function: F) -> F:
    """``--device``, ``--beam``, ``--beam-seconds``."""
    return apply(function, [
        click.option("--device", default="auto", show_default=True, metavar="NAME",
                     shell_complete=completion.plugins("devices", "auto"),
                     help="Device plugin: cpu, cuda, metal, … (gemma4 doctor lists them)."),
        click.option("--beam", type=Beam(), default=0, show_default=True,
                     help="Width of tinygrad's kernel search; max is TINYGRAD_GEMMA_MAX_BEAM (4 by default)."),
        click.option("--beam-seconds", type=Number(0), default=None,
                     help="Seconds for the kernel search; kernels that it does not reach keep their default form."),
    ])


CONTEXT_HELP = "Tokens of the longest context. Default: the config's."


def context_option(help: str = CONTEXT_HELP) -> Callable[[F], F]:
    """``--context``, which is also ``-c``."""
    return click.option("--context", "-c", type=Whole(), default=None, metavar="TOKENS", help=help)


def loading_options(function: F) -> F:
    """Arguments of ``load_pretrained`` besides model and device."""
    return loading_options_with(context_option())(function)


def loading_options_with(context: Callable[[F], F]) -> Callable[[F], F]:
    """``loading_options`` where ``--context`` has a description of its own."""
    return lambda function: apply(function, [
        format_option(),
        click.option("--modality", cls=ManyOption, separator=",", default=None, metavar="NAME,…",
                     shell_complete=completion.plugins("modalities", "text"),
                     help="Towers to load, such as text,vision; text alone loads none. Default: all."),
        tokenizer_option,
        context,
        click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True,
                     help="Type to compute in; auto is that of config.json."),
        click.option("--ple", type=click.Choice(["auto", "device", "host", "disk"]), default="auto", show_default=True,
                     help="Where the per-layer embedding table is kept."),
    ])


def sampling_options(function: F) -> F:
    """Sampling options and stop strings."""
    return apply(function, [
        click.option("--max-new-tokens", "--max-tokens", "-n", type=Whole(), default=MAX_NEW_TOKENS, show_default=True,
                     metavar="N", help="Tokens of the longest answer."),
        click.option("--temperature", "--temp", type=Number(0, 1000), default=None, help="0 is greedy. " + FROM_FOLDER),
        click.option("--top-k", type=Whole(0, 1 << 30), default=None,
                     help="Sample among the K most likely tokens; 0 is off."),
        click.option("--top-p", type=Number(0, 1), default=None,
                     help="Sample among the most likely tokens of this total probability."),
        click.option("--min-p", type=Number(0, 1), default=None,
                     help="Sample among tokens at least this likely, relative to the most likely one."),
        click.option("--repetition-penalty", type=Number(0, 1000, above=True), default=None,
                     help="Above 1, tokens that were seen before become less likely."),
        click.option("--presence-penalty", type=Number(-2, 2), default=None,
                     help="Taken off the logit of every token that the answer holds; -2 to 2."),
        click.option("--frequency-penalty", type=Number(-2, 2), default=None,
                     help="Taken off that logit for each time that the answer holds the token; -2 to 2."),
        click.option("--logit-bias", type=Bias(), multiple=True,
                     help="Add a number to the logit of a token id, such as 106=-5; may be given more than once."),
        click.option("--seed", type=Whole(0, (1 << 32) - 1), default=None, help="Make sampling repeatable."),
        click.option("--ignore-eos", is_flag=True, help="Go on past the ids that end an answer."),
        click.option("--stop", multiple=True, type=Text(), metavar="TEXT",
                     help="End the answer before this text; may be given more than once."),
        click.option("--draft", default=None, metavar="NAME|off", shell_complete=completion.plugins("drafters", "off"),
                     help="Drafter plugin that proposes tokens, such as lookup; the answer stays the same."),
        click.option("--num-draft-tokens", type=Whole(1, 64), default=None, metavar="N",
                     help="Most tokens that the drafter proposes at once."),
    ])


FROM_FOLDER = "Default: generation_config.json."


def long_running(function: F) -> F:
    """``--quiet``, and a log line every few seconds where stderr is not a terminal."""

    @click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors on stderr, log lines included.")
    @functools.wraps(function)
    def run(*args: Any, quiet: bool, **values: Any) -> Any:
        with console.configured(quiet, log=True):
            return function(*args, **values)

    return run  # type: ignore[return-value]


def verbosity_options(function: F) -> F:
    """``--quiet`` and ``--verbose``."""
    return apply(function, [
        click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors on stderr."),
        click.option("--verbose", "-v", is_flag=True,
                     help="Print what was loaded and how fast it ran, also where stderr is not a terminal."),
    ])
