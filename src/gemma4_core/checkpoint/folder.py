"""The files beside a checkpoint's weights, copied to a new folder."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Container, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemma4_core.checkpoint.contents import (
    CONFIG,
    LISTED,
    LITTER,
    SIDE_FILES,
    is_cache,
    known_name,
    listed_files,
    other_names,
)
from gemma4_core.contracts import FORMAT_KEY, Context
from gemma4_core.formatting import shown, shown_path

MARKERS = (FORMAT_KEY, "quantization_config", "quantization", LISTED[CONFIG])
"""Keys of config.json that say how weights are stored; they are written anew."""
KEPT_BYTES = 256 << 20
NAMES_SHOWN = 8
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Names of files in the hub's cache: a blob's git or SHA-256 digest."""


def write_config(
    raw: Mapping[str, Any], dtype: str, folder: Path, manifest: Mapping[str, Any] | None = None
) -> None:
    """config.json as it was, with the dtype of the weights, the format's own entries, and a list of the files that the
    format wrote under names of its own."""
    data: dict[str, Any] = copy.deepcopy(dict(raw))
    for marker in MARKERS:
        data.pop(marker, None)
    for section in (data, *(data.get(f"{name}_config") for name in ("text", "vision", "audio"))):
        if isinstance(section, dict):
            for key in {"dtype", "torch_dtype"} & section.keys():
                section[key] = dtype
    if "torch_dtype" not in data:
        data["dtype"] = dtype
    if manifest is not None:
        data[FORMAT_KEY] = dict(manifest)
    if others := other_names(folder):
        data[LISTED[CONFIG]] = others
    (folder / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def copy_others(context: Context, folder: Path) -> None:
    """Copy tokenizer, template, processor and generation files, licence and model card of a checkpoint, if it is still
    there.

    Files of other names are not copied, because people upload the result. Neither are links to files outside the folder
    and the hub's cache. A line on stderr names what is not copied.
    """
    for name in SIDE_FILES & context.side_files.keys():
        (folder / name).write_bytes(context.side_files[name])
    source = context.folder
    if source is None or not source.is_dir():
        return
    left = []
    own = listed_files(source)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        path = source / entry.name
        if entry.name in context.side_files:
            continue
        if entry.name in SIDE_FILES:
            reason = why_not(path, source)
            if reason is None:
                shutil.copyfile(path, folder / entry.name)
            else:
                left.append(f"{shown(entry.name)} ({reason})")
        elif not known_name(entry.name) and not is_weight(path, own) and not is_litter(entry):
            left.append(shown(entry.name))
    if left:
        more = f" and {len(left) - NAMES_SHOWN} more" if len(left) > NAMES_SHOWN else ""
        tell(f"not copied from {shown_path(source)}: {', '.join(left[:NAMES_SHOWN])}{more}")


def why_not(path: Path, source: Path) -> str | None:
    """Why a file must not be copied; None if it may be."""
    try:
        found = os.stat(path)
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    except OSError as fault:
        return "a link to a file that is absent" if isinstance(fault, FileNotFoundError) else str(fault.strerror)
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    if found.st_size > KEPT_BYTES:
        return f"larger than {KEPT_BYTES >> 20} MiB"
    if not real.is_relative_to(home) and not from_hub(real, source):
        return f"a link to {shown_path(real, 60)}, which is outside the folder"
    return None


def from_hub(real: Path, source: Path) -> bool:
    """Whether a file that a link leads to is in the hub's cache, or among the ``blobs`` of a snapshot's files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if real.is_relative_to(os.path.realpath(HF_HUB_CACHE)):
        return True
    # a cache may be reached by a link, and its parts may lie on another disk
    for home in (Path(os.path.abspath(source)), Path(os.path.realpath(source))):
        if home.parent.name == "snapshots":
            blobs = Path(os.path.realpath(home.parents[1] / "blobs"))
            own = blobs == Path(os.path.realpath(home.parents[1])) / "blobs"
            if real.is_relative_to(blobs) and (own or BLOB.fullmatch(real.name)):
                return True
    return False


def is_weight(path: Path, own: Container[str]) -> bool:
    """Whether a file's name is that of weights or of their index, which are written anew."""
    return path.name.endswith((".safetensors", ".index.json")) or path.name in own


def is_litter(entry: os.DirEntry[str]) -> bool:
    """Whether an entry belongs neither to the model nor to the user."""
    return entry.name in LITTER or (entry.is_dir() and is_cache(entry))


@lru_cache
def tell(line: str) -> None:
    """A line on stderr, once: a training run saves many times."""
    print(line, file=sys.stderr, flush=True)
