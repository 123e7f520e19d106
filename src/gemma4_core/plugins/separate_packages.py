"""What this repository's separate packages bring, to name the package where it is missing.

It stands in ``data/packages.json``, an object per package: ``options`` are prefixes of its options, each alone or
followed by a hyphen, ``commands`` its commands, ``kinds`` the kinds of plugins that nothing else of ours brings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files


@cache
def packages() -> dict[str, dict[str, list[str]]]:
    """The table, by package."""
    table: dict[str, dict[str, list[str]]] = json.loads(
        (files("gemma4_core") / "data" / "packages.json").read_text(encoding="utf-8")
    )
    return table


def owner_of_option(flag: str) -> str | None:
    """The package that an option belongs to, where it is not installed."""
    owners = (package for package, brings in packages().items() if _is_one_of(flag, brings["options"]))
    return next((package for package in owners if not installed(package)), None)


def owner_of_command(name: str) -> str | None:
    """The package that a command belongs to, where it is not installed."""
    owners = (package for package, brings in packages().items() if name in brings["commands"])
    return next((package for package in owners if not installed(package)), None)


def owner_of_kind(kind: str) -> str | None:
    """The package that brings plugins of a kind, where it is not installed."""
    owners = (package for package, brings in packages().items() if kind in brings.get("kinds", ()))
    return next((package for package in owners if not installed(package)), None)


def missing(what: str, package: str) -> str:
    """The message about what belongs to a package that is not installed."""
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
