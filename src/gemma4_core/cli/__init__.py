"""The command line: ``gemma4`` and its alias ``tinygrad-gemma``, and what authors of commands need: a base class that
reports failures, option types, options that commands share, and output.

Names are imported on first use: importing this imports neither click nor tinygrad.
"""

from __future__ import annotations

import sys

# nothing else is imported before ``_start``, which ends a Ctrl-C without a traceback
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from gemma4_core.cli.base import GemmaCommand, ManyOption
    from gemma4_core.cli.group import cli
    from gemma4_core.cli.options import (
        FilePath,
        Number,
        Whole,
        device_options,
        loading_options,
        long_running,
        model_option,
        overwrite_option,
        sampling_options,
        verbosity_options,
    )
    from gemma4_core.cli.output import json_text, note, on_terminal, tell, write
    from gemma4_core.cli.plugin_options import PluginOptionsCommand

__all__ = [
    "FilePath",
    "GemmaCommand",
    "ManyOption",
    "Number",
    "PluginOptionsCommand",
    "Whole",
    "cli",
    "device_options",
    "generate_main",
    "json_text",
    "loading_options",
    "long_running",
    "main",
    "model_option",
    "note",
    "on_terminal",
    "overwrite_option",
    "sampling_options",
    "tell",
    "verbosity_options",
    "write",
]

_MODULES = {
    "base": "GemmaCommand ManyOption",
    "group": "cli",
    "options": (
        "FilePath Number Whole device_options loading_options long_running model_option overwrite_option"
        " sampling_options verbosity_options"
    ),
    "output": "json_text note on_terminal tell write",
    "plugin_options": "PluginOptionsCommand",
}


def __getattr__(name: str) -> Any:
    from gemma4_core.lazy_names import lazy_names

    return lazy_names(__name__, _MODULES)[0](name)


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
