"""Folders that are not checkpoints but name one that they belong to, such as adapters."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.checkpoint.folder_headers import INDEX_FILE, SINGLE_FILE
from gemma4_core.checkpoint.snapshots import cached_snapshot
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown_path

if TYPE_CHECKING:
    from gemma4_core.contracts import ModelTransform

ADAPTER_FILE = "adapter_config.json"
"""peft's file; it marks an adapter even if no plugin for it is installed."""


@dataclass(frozen=True)
class Adapted:
    """What a folder such as an adapter stands for: a checkpoint, and options to open it with."""

    folder: Path
    transform: ModelTransform
    base: str | None
    options: Mapping[str, Any]

    @property
    def arguments(self) -> str:
        """The same as command-line arguments."""
        base = shlex.quote(self.base) if self.base else "BASE"
        flags = {option.keyword: option.flag for option in self.transform.options}
        given = [(flags[key], value) for key, values in self.options.items() for value in values]
        return " ".join([f"-m {base}", *(f"{flag} {shlex.quote(str(value))}" for flag, value in given)])

    def merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The folder's options followed by the user's."""
        found = dict(options)
        for key, values in self.options.items():
            more = options.get(key) or ()
            found[key] = [*values, *([more] if isinstance(more, str | Path) else more)]
        return found


def adapted(name: str | Path) -> Adapted | None:
    """What an adapter stands for, given as a folder without model weights or as the hub name of one in the Hugging Face
    cache. None where no transform knows it."""
    from gemma4_core.plugins import registry

    folder = Path(name)
    try:
        if not folder.exists():
            folder = cached_snapshot(str(name), ADAPTER_FILE) or folder
        if not folder.is_dir() or any((folder / file).exists() for file in (SINGLE_FILE, INDEX_FILE)):
            return None
    except (OSError, ValueError):
        return None
    for transform in registry.transforms.values():
        found = transform.based_on(folder) if transform.based_on is not None else None
        if found is not None:
            base, options = found
            # a path in it may be relative to the adapter's folder
            beside = base is not None and not Path(base).exists() and (folder / base).is_dir()
            return Adapted(folder, transform, str(folder / base) if base and beside else base, options)
    return None


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for an adapter in place of a checkpoint, saying what to give instead."""
    found = adapted(folder)
    if found is not None:
        base = f"-m {shlex.quote(found.base)}" if found.base else "its base with -m"
        raise CheckpointError(f"{shown_path(folder)} is not a checkpoint but changes one (transform "
                              f"{found.transform.name}); give {base}, and to commands that apply it {found.arguments}")
    if (folder / ADAPTER_FILE).exists() and not (folder / "config.json").exists():
        raise CheckpointError(f"{shown_path(folder)} is an adapter ({ADAPTER_FILE}), not a checkpoint, and no plugin "
                              f"that applies it is loaded; see gemma4 plugins, and give its base model with -m")
