"""The keyword arguments that ``generate`` and ``stream_generate`` take beside their own: those of the modalities."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gemma4_core.plugins import registry
from gemma4_core.plugins.options import refuse_unknown


def check_keywords(
    function: Callable[..., Any], given: Mapping[str, Any], more: Iterable[str], name: str | None = None
) -> None:
    """Raise InputError for a keyword that is neither the function's own nor one of ``more``, naming the nearest."""
    if given:
        own = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
        refuse_unknown(f"option of {name or function.__name__}", given, {*own, "max_new_tokens", *more})


def feature_keywords() -> list[str]:
    """What ``forward_ids`` and ``generate`` take of prepared media, such as ``pixel_values``."""
    return [keyword for spec in registry.modalities.values() for keyword in spec.keywords]


def media_keywords() -> list[str]:
    """What ``stream_generate`` takes of media and of modalities' options, such as ``images`` and ``image_tokens``."""
    specs = registry.modalities.values()
    options = [option.keyword for spec in specs for option in spec.options]
    return [*(spec.media_keyword for spec in specs), *options, "allow_urls"]
