"""Headers of safetensors files: opening a folder, comparing it with its config, and reading every tensor."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import open_checkpoint, small_checkpoint
from fuzzing.tensors import mutate_tensors

FILE = "model.safetensors"


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        return [small_checkpoint()]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        if rng.random() < 0.04:
            return mutate_files(rng, sample, (FILE, "model.safetensors.index.json"))
        words = ("lm_head.weight", "model.language_model.norm.weight", "norm.weight", "a.rotary_emb.inv_freq")
        return {**sample, FILE: mutate_tensors(rng, sample.get(FILE, b""), words)}

    def run(self, folder: Path) -> None:
        from gemma4_core import CheckpointError
        from gemma4_core.checkpoint import CheckpointFiles

        files = CheckpointFiles.open(folder)
        try:
            for name in files:
                files.bytes(name)
                try:
                    files.array(name)
                except CheckpointError:
                    continue
        finally:
            files.close()
        open_checkpoint(folder)
