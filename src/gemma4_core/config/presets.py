"""Models by name, as config.json objects and as configs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gemma4_core.config.models import FAMILIES, MODELS, TUNED
from gemma4_core.config.outer import GemmaConfig, is_media_key, parse_config
from gemma4_core.errors import ConfigError
from gemma4_core.formatting import shown


def find(name: str) -> str:
    """The preset's name in its own spelling: of ``E2B`` in any case, ``e2b-it``, ``google/gemma-4-E2B``.

    Raises ConfigError naming those there are.
    """
    wanted = name.lower().removeprefix("google/").removeprefix("gemma-4-").removesuffix(TUNED)
    for known in MODELS:
        if known.lower() == wanted:
            return known
    raise ConfigError(f"no preset {shown(name)}; there are {', '.join(MODELS)}")


def preset_of(config: GemmaConfig) -> str | None:
    """The preset whose text model has a config's shape, None for any other shape."""
    return next((name for name in MODELS if shape(preset_config(name)) == shape(config)), None)


def shape(config: GemmaConfig) -> tuple[int, ...]:
    """What tells the sizes of text models apart."""
    text = config.text_config
    return text.num_hidden_layers, text.hidden_size, text.vocab_size, text.num_experts


def preset_dict(name: str, towers: bool = True, text_only: bool = False) -> dict[str, Any]:
    """A fresh config.json object of a preset, to change and write.

    Args:
        name: a preset in any case. Raises ConfigError for others.
        towers: False sets the towers' parts to null.
        text_only: the object of a checkpoint that has the text model alone.
    """
    data = copy.deepcopy(MODELS[find(name)].config)
    if text_only:
        return {"architectures": [FAMILIES[data["model_type"]].text_architecture], **data["text_config"]}
    return data if towers else without_towers(data)


def without_towers(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json object with null for the parts of towers."""
    return dict(data) | {key: None for key in data if is_media_key(key)}


def preset_config(name: str, towers: bool = True, text_only: bool = False) -> GemmaConfig:
    """A preset as a config, with the arguments of ``preset_dict``."""
    return parse_config(preset_dict(name, towers, text_only), f"preset {find(name)}")


PRESETS: dict[str, Callable[..., GemmaConfig]] = {name: partial(preset_config, name) for name in MODELS}
"""Config factories by name: ``PRESETS["E2B"]()``."""
