"""The ``gemma4`` command: a group that imports a sub-command when it runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import Robust, read_environment
from gemma4_core.cli.commands import commands, is_ours, load_command, origin, summary
from gemma4_core.errors import PluginError

if TYPE_CHECKING:
    from gemma4_core.plugins import CommandEntry

HELP = """Gemma 4 on tinygrad: text, images and sound, on CPU or GPU.

\b
  gemma4 demo                                         see it work
  gemma4 download --sizes E2B --it                    fetch a model
  gemma4 generate -m e2b-it "Hello"                   ask it
  gemma4 chat -m e2b-it                               talk with it

A model is a checkpoint folder, a hub name such as google/gemma-4-E2B-it, or an alias such as e2b-it.
"""
EPILOG = """Every option can be set as an environment variable: GEMMA4_MODEL=demo, GEMMA4_MAX_NEW_TOKENS=64.
GEMMA4_DEBUG=1 shows tracebacks and all faults. GEMMA4_DISABLE_PLUGINS=a,b leaves plugins out."""


class LazyGroup(Robust, click.Group):
    """A group that imports a sub-command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = commands().get(cmd_name)
        if entry is None:
            return None
        command = load_command(entry)
        read_environment(command.params)  # also for plain click commands
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from gemma4_core.plugins.origin import nearest
            from gemma4_core.plugins.separate_packages import missing, owner_of_command

            if package := owner_of_command(args[0]):
                raise click.UsageError(missing(f"The command {args[0]}", package), ctx) from error
            if close := nearest(args[0], self.list_commands(ctx)):
                raise click.UsageError(f"No such command {args[0]!r}{close}", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        known = commands()
        for title, ours in (("Commands", True), ("Commands of plugins", False)):
            if rows := [(name, _line(entry)) for name, entry in known.items() if is_ours(entry) is ours]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        known = commands().items()
        found = [CompletionItem(name, help=_line(entry)) for name, entry in known if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


def _line(entry: CommandEntry) -> str:
    return summary(entry) if is_ours(entry) else f"{summary(entry)} (from {origin(entry)})".strip()


def show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print our version and tinygrad's, without importing it."""
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("tinygrad-gemma4", "tinygrad"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed as a package)")
    click.echo(", ".join(found))
    ctx.exit()


def loadable(name: str) -> click.Command | None:
    """A command by name, for another program name; None where it is absent or fails to load."""
    try:
        return cli.get_command(click.Context(cli), name)
    except PluginError:
        return None


def ensure_standard_streams() -> None:
    """Replace closed standard streams by the null device, and write ``?`` for characters that stdout cannot encode."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def quiet_libraries() -> None:
    """Silence warnings and progress bars of libraries where stderr is not a terminal: failures print one line there."""
    from gemma4_core.cli.failures import debugging

    if debugging() or sys.stderr.isatty():
        return
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for worker processes


@click.group(
    cls=LazyGroup, help=HELP, epilog=EPILOG, context_settings={"help_option_names": ["--help", "-h"]},
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=show_version,
              help="Show the version and exit.")
def cli() -> None:
    """See ``HELP``."""
