"""What every description has: the checkpoint that ``matches`` looks at, and command-line options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig


@dataclass(frozen=True)
class Context:
    """What ``matches`` and the factories see of a checkpoint folder. All fields are None or empty without a folder."""

    folder: Path | None = None
    config: GemmaConfig | None = None
    """The parsed config."""
    raw_config: Mapping[str, Any] = field(default_factory=dict)
    """config.json as read, keys that the core does not know included."""

    def file(self, name: str) -> Path | None:
        """The path of a file directly in the folder, or None where it is absent. What else has the name, such as a pipe
        or a link to nothing, is told where it is read."""
        path = self.folder / name if self.folder else None
        return path if path is not None and os.path.lexists(path) else None


Matches = Callable[[Context], bool]


def always(context: Context) -> bool:
    """The default of ``matches``."""
    return True


@dataclass(frozen=True)
class Option:
    """A command-line option that a plugin adds to ``generate``, ``chat`` (and ``train`` for transforms).

    The parsed value reaches the plugin under ``keyword`` (the flag without dashes, ``-`` as ``_``).
    """

    flag: str
    help: str
    type: type = str
    multiple: bool = False
    default: Any = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    """The values that it takes, where they are few; another one is a usage error."""
    training: bool = False
    """Whether ``train`` alone takes it."""

    @property
    def keyword(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")
