"""generation_config.json."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import plain, small_config
from fuzzing.values import mutate_json

FILE = "generation_config.json"
WORDS = ("temperature", "top_k", "top_p", "min_p", "do_sample", "eos_token_id", "bos_token_id", "pad_token_id",
         "repetition_penalty", "max_length", "stop_strings", "suppress_tokens", "forced_bos_token_id", "num_beams")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        config = {"config.json": plain(small_config())}
        full = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": [1, 16, 9], "do_sample": True, "temperature": 1.0,
                "top_k": 64, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0, "transformers_version": "5.23.0"}
        return [{**config, FILE: plain(full)}, {**config, FILE: plain({"eos_token_id": 1})}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        if rng.random() < 0.04:
            return mutate_files(rng, sample, (FILE,))
        return {**sample, FILE: mutate_json(rng, sample.get(FILE, b"{}"), WORDS)}

    def run(self, folder: Path) -> None:
        from gemma4_core.checkpoint.context import read_context
        from gemma4_core.config import load_generation_config
        from gemma4_core.generation.sampling import Sampling
        from gemma4_core.openai import sampling

        context = read_context(folder)
        assert context.config is not None
        found = load_generation_config(folder, context.config)
        # generation must accept every setting that was accepted from a folder
        asked = sampling(found, {})
        Sampling.of(asked.pop("temperature"), **asked)
