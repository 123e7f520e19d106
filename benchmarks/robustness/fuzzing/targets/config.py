"""config.json, through ``load_pretrained`` up to the weights and through what ``gemma4 info`` shows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import open_checkpoint, plain, reference_config, small_checkpoint, small_config
from fuzzing.values import mutate_json

REFERENCES = ("text/e2b", "text/e4b", "text/moe", "text/dense", "text/e4b-text", "multimodal/e2b-mm",
              "multimodal/dense-mm", "multimodal/odd-e2b")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        small = small_checkpoint()
        whole = [{**small, "config.json": plain(small_config(towers))} for towers in (False, True)]
        self._keys = sorted(_keys([json.loads(reference_config(name)) for name in REFERENCES]))
        others = {name: content for name, content in small.items() if name != "model.safetensors"}
        return whole + [{**others, "config.json": reference_config(name)} for name in REFERENCES]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        if rng.random() < 0.03:
            return mutate_files(rng, sample, ("config.json",))
        return {**sample, "config.json": mutate_json(rng, sample.get("config.json", b"{}"), self._keys)}

    def run(self, folder: Path) -> None:
        from gemma4_core.checkpoint.context import read_context
        from gemma4_core.config import expected_text_tensors
        from gemma4_core.plugins import registry

        context = read_context(folder)
        assert context.config is not None
        expected_text_tensors(context.config)
        for tower in registry.matching("modality", context):
            tower.tensors(context.config)
        open_checkpoint(folder)


def _keys(value: object) -> set[str]:
    """Every key of an object, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(_keys, value.values()))
    return set().union(*map(_keys, value)) if isinstance(value, list) else set()
