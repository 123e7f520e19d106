"""The small tokenizer that ships with the package, for random and demonstration checkpoints.

Its ids differ from the released ones on purpose: nothing may rely on those. ``tests/reference/make_tokenizer_data.py``
derives it and lists every id.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

TINY_VOCAB_SIZE = 512
TINY_TEXT_IDS: Mapping[str, int] = MappingProxyType({"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2})
"""Ids of a text config that goes with it."""
TINY_MEDIA_IDS: Mapping[str, int] = MappingProxyType(
    {
        "boi_token_id": 17, "image_token_id": 19, "eoi_token_id": 21, "boa_token_id": 18, "audio_token_id": 20,
        "eoa_token_id": 22, "video_token_id": 23,
    }
)
"""Ids of an outer config that goes with it."""
TINY_STOP_IDS = (1, 16, 9)
"""``<eos>``, ``<turn|>`` and ``<|tool_response>``, for ``eos_token_id`` of generation_config.json."""


def copy_tiny_tokenizer(folder: Path, template: bool = True) -> None:
    """Copy tokenizer.json, tokenizer_config.json and, with ``template``, chat_template.jinja into a folder."""
    source = files("gemma4_core") / "data" / "tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json", *(("chat_template.jinja",) if template else ())):
        (folder / name).write_bytes((source / name).read_bytes())
