"""The Gemma 4 models in the Hugging Face cache: listed, and removed from there and nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma4_core.checkpoint.hub import REPOSITORIES, TUNED
from gemma4_core.checkpoint.snapshots import cached_snapshot
from gemma4_core.config.files import CONFIG_LIMIT, read_json
from gemma4_core.errors import CheckpointError, Gemma4Error
from gemma4_core.formatting import shown

PREFIX = "models--"
"""The prefix of a model's folder in the cache."""
FAMILY = "gemma4"
"""The prefix of every Gemma 4's ``model_type``."""


@dataclass(frozen=True)
class CachedModel:
    """A model of the cache."""

    name: str
    """Its hub name."""
    alias: str | None
    """Its short name, such as ``e2b-it``."""
    folder: Path
    """Its newest snapshot."""
    nbytes: int
    """Bytes on disk, all revisions together."""


def cache_root() -> Path:
    """The folder of the Hugging Face cache, which need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def alias_of(hub_name: str) -> str | None:
    """The short name of an official model."""
    official = {name: short for short, name in REPOSITORIES.items()}
    official |= {name + TUNED: short + TUNED for name, short in official.items()}
    return official.get(hub_name)


def cached_models() -> list[CachedModel]:
    """The Gemma 4 models of the cache, by name. What cannot be read is left out."""
    found = []
    for repository in _repositories():
        name = repository.name.removeprefix(PREFIX).replace("--", "/")
        folder = cached_snapshot(name)
        if folder is not None and _is_gemma4(folder / "config.json"):
            found.append(CachedModel(name, alias_of(name), folder, _size(repository)))
    return sorted(found, key=lambda model: model.name.lower())


def remove_cached(name: str) -> None:
    """Delete a model of the cache with all of its revisions. Follows no link and touches nothing outside the cache.

    Args:
        name: a hub name.

    Raises:
        CheckpointError: where the cache has no such model, its folder is a link, or it cannot be deleted.
    """
    root = cache_root()
    repository = root / (PREFIX + name.replace("/", "--"))
    if repository.is_symlink():
        raise CheckpointError(f"{repository} is a link to another place; remove it yourself")
    if repository.parent != root or not repository.is_dir():
        raise CheckpointError(f"{shown(name)} is not in the Hugging Face cache ({root})")
    try:
        shutil.rmtree(repository)  # removes links without following them
    except OSError as error:
        raise CheckpointError(f"{repository} cannot be removed completely: {error.strerror or error}") from error
    locks = root / ".locks" / repository.name
    if locks.is_dir() and not locks.is_symlink():
        shutil.rmtree(locks, ignore_errors=True)


def _repositories() -> Iterator[Path]:
    try:
        entries = sorted(cache_root().iterdir())
    except OSError:
        return
    yield from (path for path in entries if path.name.startswith(PREFIX) and path.is_dir())


def _is_gemma4(config: Path) -> bool:
    try:
        found = read_json(config, CONFIG_LIMIT)
    except Gemma4Error:
        return False
    return str(found.get("model_type", "")).startswith(FAMILY)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, links left out."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in files if not path.is_symlink())
