"""Adapter folders in the peft layout."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, folder_sample, mutate_files
from fuzzing.targets._shared import ADAPTERS, ROOT
from fuzzing.tensors import mutate_tensors
from fuzzing.values import mutate_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WORDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "target_parameters", "use_rslora",
         "bias", "peft_type", "modules_to_save", "use_dora", "layers_to_transform", "fan_in_fan_out", "q_proj",
         ".*", "(a+)+b",
         "base_model_name_or_path", "layers_pattern", "[", "\\", "(?:x", "q" * 300)


class Target:
    reads_anything = False

    def __init__(self) -> None:
        from gemma4_core.config import load_config

        references = ROOT / "tests" / "reference" / "data"
        self.configs = {name: load_config(references / group / name) for group, name in
                        (("text", "dense"), ("text", "moe"), ("multimodal", "e2b-mm"))}

    def seeds(self) -> Sequence[Sample]:
        return [{**folder_sample(ADAPTERS / name), "base.txt": name.encode()} for name in self.configs]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance = rng.random()
        if chance < 0.04:
            return {**mutate_files(rng, sample, (CONFIG, WEIGHTS, "adapter_model.bin", "last")),
                    "base.txt": sample["base.txt"]}
        if chance < 0.5:
            return {**sample, CONFIG: mutate_json(rng, sample.get(CONFIG, b"{}"), WORDS)}
        return {**sample, WEIGHTS: mutate_tensors(rng, sample.get(WEIGHTS, b""))}

    def run(self, folder: Path) -> None:
        from gemma4_lora.files import read_adapter

        read_adapter(folder, self.configs[(folder / "base.txt").read_text()])
