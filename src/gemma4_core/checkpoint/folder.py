"""What lies in a checkpoint folder beside its weights, carried over to a new one."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKERS = ("gemma4_format", "quantization_config", "quantization")
"""Keys of config.json that say how weights are stored; each format writes its own."""
KEPT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
KEPT_BYTES = 256 << 20
NOT_KEPT = ("config.json", "training_state.json")


def write_config(raw: Mapping[str, Any], dtype: str, folder: Path) -> None:
    """config.json as it was, with the dtype that weights are in, and with what the format has put into the folder's
    config.json already."""
    data: dict[str, Any] = copy.deepcopy(dict(raw))
    for marker in MARKERS:
        data.pop(marker, None)
    for section in (data, *(data.get(f"{name}_config") for name in ("text", "vision", "audio"))):
        if isinstance(section, dict):
            for key in {"dtype", "torch_dtype"} & section.keys():
                section[key] = dtype
    if "torch_dtype" not in data:
        data["dtype"] = dtype
    path = folder / "config.json"
    if path.exists():
        data |= json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def copy_others(source: Path | None, folder: Path) -> None:
    """Tokenizer, template, processor and generation files of a folder, where it is still there."""
    if source is None or not source.is_dir():
        return
    for path in sorted(source.iterdir()):
        wanted = path.suffix in KEPT_SUFFIXES and path.name not in NOT_KEPT and not path.name.startswith(".")
        if wanted and not path.name.endswith(".index.json") and path.is_file() and path.stat().st_size <= KEPT_BYTES:
            shutil.copyfile(path, folder / path.name)
