"""The options and commands of this repository's separate packages, to name the package where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution

OPTIONS = {
    "gemma4-lora": ("--adapter", "--lora"),
    "gemma4-video": ("--video",),
}
"""Prefixes of a package's options."""
COMMANDS = {"fuse": "gemma4-lora"}
"""Package by command."""


def owner_of_option(flag: str) -> str | None:
    """The package that an option belongs to, where it is not installed."""
    owners = (package for package, beginnings in OPTIONS.items() if _is_one_of(flag, beginnings))
    return next((package for package in owners if not installed(package)), None)


def owner_of_command(name: str) -> str | None:
    """The package that a command belongs to, where it is not installed."""
    package = COMMANDS.get(name)
    return package if package is not None and not installed(package) else None


def missing(what: str, package: str) -> str:
    """The message about an option or command whose package is not installed."""
    return (f"{what} belongs to the package {package}, which is not installed; in a clone of this project run: "
            f"pip install -e plugins/{package}")


def installed(package: str) -> bool:
    """Whether a distribution is installed. Imports nothing of it."""
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _is_one_of(flag: str, beginnings: Sequence[str]) -> bool:
    return any(flag == beginning or flag.startswith(f"{beginning}-") for beginning in beginnings)
