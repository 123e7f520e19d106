"""The files in a checkpoint folder: those that belong to a model, and the owner's, which are never replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gemma4_core.config.files import read_json
from gemma4_core.contracts import Context
from gemma4_core.errors import Gemma4Error

SIDE_FILES = frozenset((
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
    "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt",
    "USE_POLICY.md", "PROHIBITED_USE_POLICY.md",
))  # fmt: skip
"""Files beside the weights that go with a model into another folder."""
CONFIG, ADAPTER, STATE = "config.json", "adapter_config.json", "training_state.json"
WRITTEN = frozenset((
    CONFIG, ADAPTER, STATE, "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "training_state.safetensors",
))  # fmt: skip
"""Files that writers write themselves."""
SHARD = re.compile(r"model-\d{5,6}-of-\d{5,6}\.safetensors")
LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini", ".gitattributes"))
"""Files that operating systems and the hub put into any folder."""
LISTED = {CONFIG: "gemma4_files", STATE: "files"}
"""File and key under which a writer lists files of other names, written by plugins."""


def listed_files(folder: Path) -> set[str]:
    """Names of files that plugins wrote into a checkpoint folder, as its own files list them."""
    names: list[object] = []
    for file, key in LISTED.items():
        with suppress(Gemma4Error):
            value = read_json(folder / file).get(key) if (folder / file).is_file() else None
            names += value if isinstance(value, list) else []
    return {name for name in names if isinstance(name, str)}


def other_names(folder: Path) -> list[str]:
    """Names in a folder being written that can be told from the owner's files only if they are listed."""
    return [name for name in sorted(os.listdir(folder)) if not known_name(name)]


def known_name(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint."""
    return name in SIDE_FILES or name in WRITTEN or SHARD.fullmatch(name) is not None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint: it has config.json and weights."""
    if not (folder / CONFIG).is_file():
        return False
    return any(folder.glob("*.safetensors")) or any((folder / name).is_file() for name in listed_files(folder))


def weight_files(context: Context) -> list[Path]:
    """The files of a checkpoint's weights: the single file, or those of the folder by their names."""
    if context.folder is None:
        return [] if context.path is None else [context.path]
    named = [context.folder / name for name in sorted(listed_files(context.folder))]
    found = dict.fromkeys([*sorted(context.folder.glob("*.safetensors")), *named])
    return [path for path in found if path.is_file()]


def foreign_files(folder: Path, own: Iterable[str] = ()) -> list[str]:
    """Names in a folder that no checkpoint writer made: they are the owner's.

    Args:
        folder: a checkpoint or adapter folder, or one of a training run's steps.
        own: further names that the caller has written there itself.
    """
    mine = {*own, *LITTER, *listed_files(folder)}

    def ours(entry: os.DirEntry[str]) -> bool:
        if entry.is_dir(follow_symlinks=False):
            return is_cache(entry)
        return known_name(entry.name) or entry.name in mine

    return sorted(entry.name for entry in os.scandir(folder) if not ours(entry))


def is_cache(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is the one in which ``hf download --local-dir`` records what it has fetched."""
    return entry.name == ".cache" and set(os.listdir(entry)) <= {"huggingface"}


def replaceable_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint and nothing else."""
    return is_checkpoint(folder) and not foreign_files(folder)


def replaceable_save(folder: Path) -> bool:
    """Whether a folder holds nothing but a checkpoint, or what a transform such as an adapter saved in a run."""
    return (is_checkpoint(folder) or (folder / STATE).is_file()) and not foreign_files(folder)


def replaceable_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and nothing else."""
    return (folder / ADAPTER).is_file() and not is_checkpoint(folder) and not foreign_files(folder)
