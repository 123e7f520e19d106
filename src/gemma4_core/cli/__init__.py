"""The command line: ``gemma4`` and its alias ``tinygrad-gemma``. Importing this imports neither click nor tinygrad."""

from __future__ import annotations

import sys

# nothing else is imported before ``_start``, which ends a Ctrl-C without a traceback
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from gemma4_core.cli.group import cli

__all__ = ["cli", "generate_main", "main"]


def __getattr__(name: str) -> Any:
    if name == "cli":
        from gemma4_core.cli.group import cli

        return cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(args: Sequence[str] | None = None) -> None:
    """``gemma4 …``: run a command and exit with its code."""

    def run() -> None:
        from gemma4_core.cli.group import cli

        cli(list(sys.argv[1:] if args is None else args), prog_name="gemma4")

    _start(run)


def generate_main(args: Sequence[str] | None = None) -> None:
    """``tinygrad-gemma …``: the same as ``gemma4 generate …``."""

    def run() -> None:
        from gemma4_core.cli.group import cli, loadable

        given = list(sys.argv[1:] if args is None else args)
        if (command := loadable("generate")) is not None:
            command(given, prog_name="tinygrad-gemma")
        cli(["generate", *given], prog_name="gemma4")  # says why there is none

    _start(run)


def _start(run: Callable[[], None]) -> None:
    try:
        from gemma4_core.cli.group import ensure_standard_streams, quiet_libraries

        ensure_standard_streams()
        quiet_libraries()
        run()
    except KeyboardInterrupt:  # while modules were still being imported
        sys.exit(130)
