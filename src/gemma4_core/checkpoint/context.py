"""What plugins see of a checkpoint: a folder, or a single file that a format opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma4_core.checkpoint.folder_headers import read_headers
from gemma4_core.config import GemmaConfig, parse_config
from gemma4_core.config.outer import CONFIG_FILE, read_raw_config
from gemma4_core.contracts import CheckpointFormat, Context
from gemma4_core.errors import ConfigError, PluginError
from gemma4_core.formatting import shown_path
from gemma4_core.plugins import registry


def read_context(path: Path | str, format: str | None = None) -> Context:
    """A checkpoint with its config parsed, as plugins see it.

    Args:
        path: a folder, or a single file that a format opens.
        format: name of that format; None (or ``auto``) is the one that matches.

    Raises:
        ConfigError: there is no checkpoint, or its config is damaged.
        PluginError: an unknown format, or several that match equally well.
    """
    path = Path(path)
    found = metadata_format(path, format)
    if found is None:
        raw = read_raw_config(path)
        return folder_context(path, parse_config(raw, shown_path(path / CONFIG_FILE)), raw)
    chosen, bare = found
    assert chosen.metadata is not None
    metadata = chosen.metadata(bare)
    config = parse_config(metadata.raw_config, shown_path(path))
    return replace(bare, config=config, raw_config=metadata.raw_config, side_files=metadata.files,
                   tokenizer_source=metadata.tokenizer_source)  # fmt: skip


def folder_context(
    folder: Path, config: GemmaConfig | None = None, raw_config: Mapping[str, Any] | None = None
) -> Context:
    """A folder's context with a config that has been read already; its headers are read when they are needed."""
    return Context(folder, config, raw_config or {}, read_headers=read_headers)


def metadata_format(path: Path, name: str | None) -> tuple[CheckpointFormat, Context] | None:
    """The format that provides a checkpoint's config, with the context that it was given; None for a folder with
    config.json, and if no format matches, so that reading the config reports what is wrong."""
    try:
        is_file, has_config = path.is_file(), (path / CONFIG_FILE).exists()
        if has_config or not path.exists():
            return None
    except (OSError, ValueError):
        return None
    bare = Context(path=path) if is_file else folder_context(path)
    if name is None or name.lower() == "auto":
        matching = [one for one in registry.matching("format", bare) if one.metadata is not None]
        if not matching:
            return None
        if len(matching) > 1 and matching[0].priority == matching[1].priority:
            raise PluginError(f"formats {matching[0].name} and {matching[1].name} match {shown_path(path)} equally "
                              f"well; choose one with --format")
        return matching[0], bare
    chosen: CheckpointFormat = registry.select("format", bare, name)
    if chosen.metadata is None:
        if is_file:
            raise ConfigError(f"{shown_path(path)} is a file, but the format {chosen.name} opens folders")
        return None
    return chosen, bare
