"""``adapter_config.json`` in the layout of peft 0.21.2, read as untrusted input.

The options that decide a LoRA's numbers are read: rank, alpha, and both by pattern; dropout for training. Options that
would make an adapter compute anything else are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemma4_core import CheckpointError
from gemma4_core.config import CONFIG_LIMIT, read_json
from gemma4_core.formatting import is_number, shown, shown_path

CONFIG_FILE = "adapter_config.json"
INERT = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora",
))  # fmt: skip
"""Keys that are read below, or that do not matter once an adapter is trained."""
OFF: tuple[Any, ...] = (None, False, "none", [], {})
"""Values with which any other key has no effect."""
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` that change the base model's weights, on which the adapter then depends."""
PATTERN_LENGTH, PATTERN_LIMIT, QUANTIFIERS, BUSY_LIMIT = 256, 1024, 2, 16
"""Limits on untrusted regular expressions, so that none takes long to match."""


@dataclass(frozen=True)
class LoraConfig:
    """Rank and strength of an adapter's matrices, by module name as transformers 5.23.0 has it."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    """``base_model_name_or_path``: the base model's name where it was trained."""
    lora_dropout: float = 0.0
    """The share of its inputs that is dropped while it trains."""

    def of(self, module: str) -> tuple[int, float]:
        """Rank of a module's matrices and the factor on their product: alpha / r, with rslora alpha / sqrt(r)."""
        rank = self.rank_pattern.get(first_match(self.rank_pattern, module), self.r)
        alpha = self.alpha_pattern.get(first_match(self.alpha_pattern, module), self.lora_alpha)
        return rank, alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def first_match(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches a module, its whole name or the end after a dot, as peft's ``get_pattern_key``;
    "" for none."""
    return next((text for text in patterns if compiled(text).fullmatch(module)), "")


@lru_cache(PATTERN_LIMIT)
def compiled(text: str) -> re.Pattern[str]:
    """A pattern, also matched after a dot. Raises re.error."""
    return re.compile(rf"(.*\.)?({text})")


def read_config(folder: Path) -> LoraConfig:
    """The config in an adapter folder. Raises CheckpointError naming the option that cannot be used."""
    path = folder / CONFIG_FILE
    where = shown_path(path)
    raw = read_json(path, CONFIG_LIMIT, CheckpointError)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {shown(raw.get('peft_type'))}; only LORA adapters can be used")
    refuse_others(raw, where)
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        whole(raw.get("r", 8), "r", where),
        number(raw.get("lora_alpha", 8), "lora_alpha", where),
        raw.get("use_rslora", False),
        {key: whole(value, f"rank_pattern {key}", where) for key, value in pattern(raw, "rank_pattern", where).items()},
        {key: number(value, f"alpha_pattern {key}", where)
         for key, value in pattern(raw, "alpha_pattern", where).items()},
        base if isinstance(base, str) else None,
        share(raw.get("lora_dropout", 0.0), "lora_dropout", where),
    )


def refuse_others(raw: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for an option that changes what an adapter computes and that is not supported."""
    for key, value in raw.items():
        if key not in INERT and value not in OFF:
            raise CheckpointError(f"{where}: {shown(key)} is {shown(value)}, which is not supported; fuse the adapter "
                                  f"with peft (merge_and_unload) and open the result")
    made = raw.get("init_lora_weights")
    if isinstance(made, str) and made.lower().startswith(BASE_CHANGING):
        raise CheckpointError(f"{where}: init_lora_weights is {shown(made)}, which changed the base model's weights; "
                              f"convert the adapter with peft (path_initial_model_for_weight_conversion)")
    if not isinstance(raw.get("use_rslora", False), bool):
        raise CheckpointError(f"{where}: use_rslora is {shown(raw['use_rslora'])}; true or false is expected")


def whole(value: Any, key: str, where: str) -> int:
    """A rank."""
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise CheckpointError(f"{where}: {shown(key)} is {shown(value)}; a whole number from 1 is expected")
    return value


def number(value: Any, key: str, where: str) -> float:
    """An alpha."""
    if not is_number(value) or abs(value) > 1e9:
        raise CheckpointError(f"{where}: {shown(key)} is {shown(value)}; a finite number is expected")
    return float(value)


def share(value: Any, key: str, where: str) -> float:
    """A dropout: peft takes 1, too."""
    if not is_number(value) or not 0 <= value <= 1:
        raise CheckpointError(f"{where}: {shown(key)} is {shown(value)}; a number from 0 to 1 is expected")
    return float(value)


def pattern(raw: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Values by regular expression. Raises CheckpointError for an invalid one, or one that could take long to match."""
    found = raw.get(key) or {}
    if not isinstance(found, dict) or len(found) > PATTERN_LIMIT:
        raise CheckpointError(f"{where}: {key} is {shown(found)}; an object of at most {PATTERN_LIMIT} entries is "
                              f"expected")
    busy = 0
    for text in found:
        count = len(re.findall(r"(?<!\\)[*+?{]", text))
        busy += count > 0
        if len(text) > PATTERN_LENGTH or count > QUANTIFIERS or busy > BUSY_LIMIT or re.search(r"\)[*+?{]", text):
            raise CheckpointError(f"{where}: {key} {shown(text)} is too complex; write module names out")
        try:
            compiled(text)
        except (re.error, OverflowError, RecursionError) as fault:
            raise CheckpointError(f"{where}: {key} {shown(text)} is not a regular expression: {fault}") from fault
    return found


def config_json(config: LoraConfig, modules: list[str], parameters: list[str]) -> dict[str, Any]:
    """The config to write: ``modules`` are adapted linear layers, ``parameters`` stacks of experts."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": config.base_model,
        "r": config.r, "lora_alpha": config.lora_alpha, "use_rslora": config.use_rslora,
        "lora_dropout": config.lora_dropout,
        "rank_pattern": dict(config.rank_pattern), "alpha_pattern": dict(config.alpha_pattern),
        "target_modules": modules, "target_parameters": parameters or None, "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "inference_mode": True, "modules_to_save": None,
    }  # fmt: skip
