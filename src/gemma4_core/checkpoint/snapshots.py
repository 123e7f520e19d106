"""Snapshots of the Hugging Face cache by hub name. huggingface_hub is imported when needed, and nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""A hub name: an owner and a name, such as ``google/gemma-4-E2B-it``."""


def cached_snapshot(hub_name: str, file: str = "config.json") -> Path | None:
    """The newest cached snapshot of a hub repository; None where there is none, or ``file`` is not in it."""
    if not HUB_NAME.fullmatch(hub_name) or ".." in hub_name:
        return None
    from huggingface_hub import snapshot_download  # takes a quarter of a second
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if (folder / file).exists() else None
