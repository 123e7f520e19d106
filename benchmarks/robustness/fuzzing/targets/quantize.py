"""Writing an untrusted folder in another format: only known files are copied."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import CANARY, LINKS, PIPE, Sample, mutate_files
from fuzzing.targets import Broken
from fuzzing.targets._shared import small_checkpoint
from fuzzing.tensors import mutate_tensors
from fuzzing.values import mutate_json

NAMES = ("notes.txt", "README.md", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "extra.json",
         "processor_config.json", "special_tokens_map.json", ".hidden.json", "training_state.json", "sub/file.json")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        return [{f"model/{name}": content for name, content in small_checkpoint().items()}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance, name = rng.random(), f"model/{rng.choice(NAMES)}"
        if chance < 0.4:
            links = [link.replace("../", "../../", 1) for link in LINKS]
            return {**sample, name: rng.choice((*links, PIPE, b"{}", b"text"))}
        if chance < 0.5:
            return mutate_files(rng, sample, (*(f"model/{name}" for name in NAMES), "out", "out/config.json"))
        if chance < 0.75:
            file = "model/config.json"
            return {**sample, file: mutate_json(rng, sample.get(file, b"{}"), ("dtype", "bfloat16", "float32"))}
        file = "model/model.safetensors"
        return {**sample, file: mutate_tensors(rng, sample.get(file, b""))}

    def run(self, folder: Path) -> None:
        from gemma4_core.quantize import quantize

        if (folder / "out").is_symlink():
            return  # the owner decides where a link leads, and the files there are checked
        try:
            quantize(folder / "model", folder / "out")
        finally:
            for path in folder.glob("out/**/*"):
                if path.is_file() and CANARY in path.read_bytes():
                    raise Broken("nothing from outside the folder is written", path.name)
