"""What a checkpoint folder says about preparing media: processor_config.json, preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma4_core.config.files import CONFIG_LIMIT, read_json
from gemma4_core.contracts import Context
from gemma4_core.errors import ConfigError


def file_values(context: Context, name: str) -> Mapping[str, Any]:
    """A JSON object of the folder by its file name; empty where the file is absent. Raises ConfigError."""
    path = context.file(name)
    return {} if path is None else read_json(path, CONFIG_LIMIT)


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
            raise ConfigError(f"{context.path}: {section} must be an object, found {type(found).__name__}")
        values |= found
    return values
