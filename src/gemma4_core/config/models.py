"""The table of models that are known by name, ``data/models.json``: model types, sizes, hub names, config.json objects,
and what is published about released files. Another Gemma 4 is one more entry there, and a plugin for new towers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
TUNED = "-it"
"""What hub names of instruction-tuned checkpoints end in."""


@dataclass(frozen=True)
class Family:
    """A ``model_type`` of config.json."""

    text_type: str
    """``model_type`` of its text part, and of checkpoints that are nothing else."""
    architecture: str
    """What config.json names as architecture."""
    text_architecture: str
    """The same for checkpoints of the text part alone."""


@dataclass(frozen=True)
class Published:
    """What is known of a size's released files."""

    tensors: int
    """How many there are, K and V that nothing uses among them."""
    parameters: int | None = None
    tuned_values: Mapping[str, float] = field(default_factory=dict)
    """Values of the instruction-tuned release by tensor name below the text model; every element of a norm weight."""
    tuned_places: tuple[str, ...] = ()
    """Names of modules one of which has ``tuned_bounds``; it is not known which."""
    tuned_bounds: Mapping[str, float] = field(default_factory=dict)
    """Values of the instruction-tuned release by tensor name below that module."""


@dataclass(frozen=True)
class Model:
    """A model that is known by name."""

    config: dict[str, Any]
    """Its config.json."""
    hub_name: str | None = None
    """Of the base checkpoint; the instruction-tuned one ends in ``-it``. None for sizes that are made for tests."""
    published: Published | None = None


def assemble(entry: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an entry: for each part the table's defaults and what the entry has instead.

    Every ``full_layer_period``-th layer is a full one, the others are sliding.
    """
    parts = {}
    for key, default in table["defaults"].items():
        own = entry.get(key)
        parts[key] = None if own is None else dict(sorted((default | own).items()))
    text, period = parts["text_config"], entry["full_layer_period"]
    assert text is not None
    kinds = [SLIDING if (index + 1) % period else FULL for index in range(text["num_hidden_layers"])]
    return {
        "architectures": [table["families"][entry["model_type"]]["architecture"]],
        "dtype": "bfloat16",
        **table["token_ids"][entry["token_ids"]],
        "initializer_range": 0.02,
        "model_type": entry["model_type"],
        "tie_word_embeddings": True,
        **parts,
        "text_config": dict(sorted((text | {"layer_types": kinds}).items())),
    }


def read_model(entry: Mapping[str, Any], table: Mapping[str, Any]) -> Model:
    """An entry of the table."""
    told = entry.get("published")
    published = None
    if told is not None:
        published = Published(**told | {"tuned_places": tuple(told.get("tuned_places", ()))})
    return Model(assemble(entry, table), entry.get("hub_name"), published)


TABLE: dict[str, Any] = json.loads((files("gemma4_core") / "data" / "models.json").read_text(encoding="utf-8"))
FAMILIES = {name: Family(**family) for name, family in TABLE["families"].items()}
"""By ``model_type`` of a checkpoint that may have towers."""
MODELS = {name: read_model(entry, TABLE) for name, entry in TABLE["models"].items()}
"""By size, the official ones first."""
GENERATION: dict[str, Any] = TABLE["generation_config"]
"""generation_config.json of the instruction-tuned releases."""


def official_sizes(model_type: str) -> list[str]:
    """Sizes that are released with a ``model_type``."""
    return [n for n, model in MODELS.items() if model.hub_name is not None and model.config["model_type"] == model_type]
