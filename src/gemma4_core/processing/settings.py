"""What a checkpoint folder says about preparing media: processor_config.json, preprocessor_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma4_core.descriptions import Context
from gemma4_core.errors import ConfigError

MAX_CONFIG_BYTES = 16 << 20


def file_values(context: Context, name: str) -> Mapping[str, Any]:
    """A JSON object of the folder by its file name; empty where the file is absent. Raises ConfigError."""
    path = context.file(name)
    if path is None:
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES >> 20} MiB; is this the right file?")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {str(error)[:120]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def processor_values(
    context: Context, section: str, *, flat: str | None = "preprocessor_config.json"
) -> dict[str, Any]:
    """Settings of one part of the processor, such as ``image_processor`` or ``feature_extractor``.

    transformers 5 writes sections of processor_config.json, earlier ones a flat file per part; the section wins.
    """
    values: dict[str, Any] = dict(file_values(context, flat)) if flat else {}
    nested = values.pop(section, None)
    whole = file_values(context, "processor_config.json")
    for found in (nested, whole.get(section)):
        if found is None:
            continue
        if not isinstance(found, dict):
            raise ConfigError(f"{context.folder}: {section} must be an object, found {type(found).__name__}")
        values |= found
    return values
