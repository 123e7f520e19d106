"""Base classes of commands: every failure is one line, and options take several values as with argparse."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from gemma4_core.cli.failures import FAILURE, OK, handle
from gemma4_core.cli.output import write


class Text(click.types.StringParamType):
    """Text. An environment variable holds several values one on each line."""

    envvar_list_splitter = "\n"


class ManyOption(click.Option):
    """An option with several values: ``--sizes E2B E4B``, ``--sizes E2B --sizes E4B``, with ``separator`` ``E2B,E4B``.

    It takes all values up to the next argument that starts with a dash (a lone ``-`` is a value).
    """

    def __init__(self, param_decls: Sequence[str], *, separator: str | None = None, **kwargs: Any) -> None:
        if kwargs.get("type") in (None, str) and "default" not in kwargs:
            kwargs["type"] = Text()
        super().__init__(param_decls, **kwargs | {"multiple": True})
        self.separator = separator

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        if self.separator and isinstance(value, list | tuple):
            value = tuple(piece.strip() for v in value for piece in str(v).split(self.separator) if piece.strip())
        return super().process_value(ctx, value)


def spread(args: Sequence[str], flags: set[str], takes_value: set[str]) -> list[str]:
    """Arguments with the flag repeated before each further value: ``--sizes A B`` becomes ``--sizes A --sizes B``.

    Args:
        args: as typed.
        flags: spellings of options that take several values.
        takes_value: spellings of other options whose next argument is their value.
    """
    result: list[str] = []
    queue = list(args)
    while queue:
        arg = queue.pop(0)
        result.append(arg)
        flag = arg.partition("=")[0]
        if arg == "--":
            return result + queue
        if flag in flags:
            if "=" not in arg and queue:
                result.append(queue.pop(0))  # also where it starts with a dash
            while queue and (queue[0] == "-" or not queue[0].startswith("-")):
                result += [flag, queue.pop(0)]
        elif arg in takes_value and queue:
            result.append(queue.pop(0))
    return result


def read_environment(params: Sequence[click.Parameter]) -> None:
    """Let every option read ``GEMMA4_<OPTION>``: ``--max-new-tokens`` is ``GEMMA4_MAX_NEW_TOKENS``.

    Of several long spellings the first that is set wins. Options that already name a variable are left out, and those
    with ``allow_from_autoenv=False``, which must be typed.
    """
    for param in params:
        if isinstance(param, click.Option) and param.allow_from_autoenv and not param.envvar and not param.is_eager:
            flags = [flag[2:] for flag in param.opts if flag.startswith("--")]
            param.envvar = [f"GEMMA4_{flag.replace('-', '_').upper()}" for flag in flags]


class Robust(click.Command):
    """A command that reports every failure as one line, and exits with the failure's code."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        read_environment(params)
        return params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            option = error.param
            if isinstance(option, click.Option) and option.name is not None and from_environment(ctx, option.name):
                option.show_envvar = True  # the message then names the environment variable
            raise
        except click.NoSuchOption as error:
            from gemma4_core.plugins.separate_packages import missing, owner_of_option

            if package := owner_of_option(error.option_name):
                raise click.UsageError(missing(error.option_name, package), ctx) from error
            raise

    def main(self, args: Any = None, prog_name: Any = None, complete_var: Any = None, standalone_mode: bool = True,
             **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        leave(lambda: super(Robust, self).main(args, prog_name, complete_var, standalone_mode=False, **extra))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Its return value is ignored: only ``ctx.exit`` and failures set the exit code."""
        try:
            super().invoke(ctx)
        except EOFError as error:
            # click takes it for the end of input at a prompt; here a file ended too early
            detail = f": {error}" if str(error) else ""
            raise click.ClickException(f"a file or stream ended too early{detail}") from error


def from_environment(ctx: click.Context, name: str) -> bool:
    """Whether a parameter's value comes from an environment variable."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.ENVIRONMENT


def prefer_typed(ctx: click.Context, values: dict[str, Any], *names: str) -> None:
    """Among options that exclude each other, drop those from the environment where one was typed."""
    typed = click.core.ParameterSource.COMMANDLINE
    if any(ctx.get_parameter_source(name) is typed for name in names):
        for name in names:
            if from_environment(ctx, name):
                values[name] = None


def leave(run: Callable[[], Any]) -> NoReturn:
    """Run a command and exit with 0, or with the code of its failure."""
    try:
        code = run()
        write("")
        code = code if isinstance(code, int) and not isinstance(code, bool) else OK
    except BaseException as error:
        code = handle(error)
    sys.exit(_flushed(code))


def _flushed(code: int) -> int:
    """Flush stdout; where that fails (closed pipe, full disk) Python prints nothing more at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)
        return code or FAILURE
    return code


def _discard(stream: Any) -> None:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class GemmaCommand(Robust):
    """A command whose ``ManyOption`` options take several values after one flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.spread_args(ctx, args))

    def spread_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments in click's form, with one value after each flag."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        many = {flag for option in options if isinstance(option, ManyOption) for flag in option.opts}
        single = {flag for option in options if not option.is_flag for flag in option.opts} - many
        return spread(args, many, single)
