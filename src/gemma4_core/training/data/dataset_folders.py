"""Folders of datasets as the Hugging Face hub and ``datasets`` lay them out: splits, and the files of each."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from gemma4_core.config.files import read_json
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.plugins.origin import nearest

FORMATS = ((".parquet", ".pq"), (".arrow",), (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), (".json", ".json.gz"))
"""Endings of data files; of several formats in a folder the first one counts, the others describe it."""
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "cache-*.arrow", "tmp*")
SAVED, SAVED_SPLITS, ABOUT = "state.json", "dataset_dict.json", "dataset_info.json"
"""Files of ``save_to_disk``: of a split, of several in folders of their own, and what datasets say of themselves."""
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words for splits, each with the name that it is known by."""
SHARD = re.compile(r"(.+?)[-_.](\d{3,6})-of-(\d{3,6})(?:-[0-9a-f]{8,})?")
PLAIN = ("data", "part", "shard", "chunk")
"""What shards are called that name no split."""
DEEPEST, MOST_ENTRIES = 4, 100_000


@dataclass(frozen=True)
class Split:
    """The files of a split, in order."""

    files: Sequence[Path]
    places: frozenset[str] = frozenset()
    """The folders that they lie in, those that are named like splits left out: several are several datasets."""


def data_files(path: Path, split: str | None = None, preferred: str = "train") -> list[Path]:
    """The files to read: the path itself, or for a folder those of a split.

    Args:
        path: a file or a folder.
        split: of the folder; None is ``preferred`` where there are several.

    Raises:
        InputError: a folder without data, an unknown split or none to choose, a split of a file.
    """
    where = shown_path(path)
    if not is_folder(path):
        if split is not None:
            raise InputError(f"--split {shown(split)[1:-1]}: {where} is not a folder; only folders have splits")
        return [path]
    splits = splits_of(path)
    name = known_split(splits, split) if split is not None else default_split(splits, preferred)
    if name is None:
        if split is None:
            way = "choose one with --split" if preferred == "train" else "none is for validation; give one of its files"
            raise InputError(f"{where}: has the splits {listed(splits)}; {way}")
        raise InputError(f"--split {shown(split)[1:-1]}: {where} has the splits {listed(splits)}"
                         f"{nearest(split, splits)}")
    if len(splits[name].places) > 1:
        folders = listed(sorted(splits[name].places))
        raise InputError(f"{where}: holds several datasets, in {folders}; give one of these folders")
    return list(splits[name].files)


def is_name(value: Any) -> TypeGuard[str]:
    """Whether a value can be the name of a split or a file that messages show."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255


def listed(names: Iterable[str]) -> str:
    """Names as a message lists them."""
    return shown(", ".join(names), 160)[1:-1]


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False for what no path can be."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def known_split(splits: Mapping[str, Split], name: str) -> str | None:
    """The name of a split as the folder has it: as typed, or another word for it such as ``val``; None if absent."""
    if name in splits:
        return name
    canonical = SPLITS.get(name.lower())
    return next((found for found in splits if canonical is not None and SPLITS.get(found.lower()) == canonical), None)


def default_split(splits: Mapping[str, Split], preferred: str) -> str | None:
    """The preferred split, or the only one; for validation also the one for tests."""
    second = "test" if preferred == "validation" else preferred
    only = next(iter(splits)) if len(splits) == 1 else None
    return known_split(splits, preferred) or known_split(splits, second) or only


def held_out_source(data: Path, split: str | None, given: Path) -> tuple[Path, str | None]:
    """Where validation examples come from: a split of the data's own folder by name, else a file or another folder.

    Returns:
        a path, and the split of it where one was named.

    Raises:
        InputError: neither a split nor a path, or the split that is trained on.
    """
    if not is_folder(data) or given.name != str(given):
        return given, None
    splits = splits_of(data)
    name = known_split(splits, given.name)
    if name is not None:
        trained = known_split(splits, split) if split is not None else default_split(splits, "train")
        if name == trained:
            raise InputError(f"--validation {name}: is the split that is trained on; name another one or a share")
        return data, name
    if not os.path.lexists(given):
        raise InputError(f"--validation {shown(given.name)[1:-1]}: is neither a file nor a split of {shown_path(data)}"
                         f" ({listed(splits)}){nearest(given.name, splits)}")
    return given, None


def splits_of(folder: Path) -> dict[str, Split]:
    """The splits of a folder by name. Raises InputError where it holds no data."""
    where = shown_path(folder)
    try:
        if (folder / SAVED_SPLITS).is_file():
            names = plain_names(read(folder / SAVED_SPLITS).get("splits"), folder / SAVED_SPLITS)
            return {name: Split(saved_files(folder / name)) for name in names}
        if (folder / SAVED).is_file():
            held = read(folder / SAVED).get("_split")
            return {held if is_name(held) else "train": Split(saved_files(folder))}
        found = list(entries(folder, folder, DEEPEST))
    except OSError as fault:
        raise InputError(f"{where}: cannot be read: {fault.strerror or fault}") from fault
    paths = next((kept for ends in FORMATS if (kept := [path for path in found if ending(path.name) in ends])), [])
    if not paths:
        raise InputError(f"{where}: holds no data; give a folder with .parquet, .arrow or .jsonl files")
    if len(found) > MOST_ENTRIES:
        raise InputError(f"{where}: holds more than {MOST_ENTRIES} files; give a folder of data alone")
    return grouped(folder, paths)


def grouped(folder: Path, paths: Sequence[Path]) -> dict[str, Split]:
    """Data files by split: those that name none are the only split, or left out where others name theirs."""
    known = told_splits(folder)
    files: dict[str | None, list[Path]] = defaultdict(list)
    places: dict[str | None, set[str]] = defaultdict(set)
    for path in sorted(paths):
        parts = path.relative_to(folder).parts
        name = split_name(parts, known)
        files[name].append(path)
        places[name].add("/".join(part for part in parts[:-1] if part not in known and part.lower() not in SPLITS))
    named = [name for name in files if name is not None]
    order = sorted(named, key=lambda name: (list(SPLITS).index(name) if name in SPLITS else len(SPLITS), name))
    if not order:
        return {"train": Split(files[None], frozenset(places[None]))}
    return {name: Split(files[name], frozenset(places[name])) for name in order}


def split_name(parts: Sequence[str], known: Sequence[str]) -> str | None:
    """The split that a file belongs to by its folders and its name; None where they do not say."""
    stem = parts[-1][: -len(ending(parts[-1]) or "")] or parts[-1]
    shard = SHARD.fullmatch(stem)
    base = shard[1] if shard else stem
    for name in known:
        if base == name or base.endswith(f"-{name}") or name in parts[:-1]:
            return name
    for part in reversed(parts[:-1]):
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    if shard and re.fullmatch(r"\w+", base) and base.lower() not in PLAIN:
        return SPLITS.get(base.lower(), base)
    return next((SPLITS[word] for word in re.split(r"[-._ 0-9]+", base.lower()) if word in SPLITS), None)


def told_splits(folder: Path) -> list[str]:
    """The splits that ``dataset_info.json`` names, where there is one that can be read."""
    try:
        told = read_json(folder / ABOUT).get("splits") if (folder / ABOUT).is_file() else None
    except Gemma4Error:
        return []
    return [name for name in told if is_name(name)] if isinstance(told, dict) else []


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a split that ``save_to_disk`` wrote. Raises InputError."""
    listed = read(folder / SAVED).get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed] \
        if isinstance(listed, list) else None
    return [folder / name for name in plain_names(names, folder / SAVED)]


def plain_names(names: Any, file: Path) -> list[str]:
    """Names of files or folders that a file lists. Raises InputError for anything that may lead out of the folder."""
    if not isinstance(names, list) or not names or len(names) > MOST_ENTRIES:
        raise InputError(f"{shown_path(file)}: lists no data; save the dataset again")
    for name in names:
        if not is_name(name) or name in (".", "..") or re.search(r"[/\\:]", name):
            raise InputError(f"{shown_path(file)}: {shown(name)} is not the name of a file in this folder")
    return list(dict.fromkeys(names))


def read(file: Path) -> dict[str, Any]:
    """A small JSON file of the dataset. Raises InputError."""
    return read_json(file, error=InputError)


def entries(folder: Path, root: Path, depth: int) -> Iterator[Path]:
    """Data files in a folder and those below it; hidden ones and links to folders are passed over."""
    count = 0
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth > 1:
                yield from entries(Path(entry.path), root, depth - 1)
        elif ending(entry.name) and not any(fnmatch.fnmatch(entry.name, name) for name in NO_DATA):
            yield Path(entry.path)
        count += 1
        if count > MOST_ENTRIES:
            return


def ending(name: str) -> str | None:
    """The ending of a data file, compression included; None for other files."""
    return next((end for ends in FORMATS for end in ends if name.lower().endswith(end)), None)
