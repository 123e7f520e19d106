"""What config.json and generation_config.json say, checked. Imports neither tinygrad nor numpy."""

from gemma4_core.config.dump import config_dict
from gemma4_core.config.files import CONFIG_LIMIT, read_json
from gemma4_core.config.generation import GenerationConfig, load_generation_config
from gemma4_core.config.models import MODELS
from gemma4_core.config.outer import GemmaConfig, load_config, parse_config
from gemma4_core.config.presets import PRESETS, preset_config, preset_dict, preset_of
from gemma4_core.config.section import Section
from gemma4_core.config.tensors import (
    below_wrappers,
    expected_text_tensors,
    ignorable,
    is_derived,
    is_head,
    released_name,
)
from gemma4_core.config.text import LayerConfig, RopeParameters, TextConfig

__all__ = [
    "CONFIG_LIMIT",
    "MODELS",
    "PRESETS",
    "GemmaConfig",
    "GenerationConfig",
    "LayerConfig",
    "RopeParameters",
    "Section",
    "TextConfig",
    "below_wrappers",
    "config_dict",
    "expected_text_tensors",
    "ignorable",
    "is_derived",
    "is_head",
    "load_config",
    "load_generation_config",
    "parse_config",
    "preset_config",
    "preset_dict",
    "preset_of",
    "read_json",
    "released_name",
]
