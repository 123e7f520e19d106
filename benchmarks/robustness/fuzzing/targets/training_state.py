"""The state files of a training run: optimizer state, metadata, and the weights beside them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, folder_sample, mutate_files, write_sample
from fuzzing.targets._shared import small_checkpoint
from fuzzing.tensors import joined, mutate_tensors, split
from fuzzing.values import mutate_json

STATE, RUN, WEIGHTS = "training_state.safetensors", "training_state.json", "model.safetensors"
WORDS = ("version", "optimizer", "training_metadata", "step", "steps", "order", "data", "epoch", "seed", "adamw", "lr",
         "digest", "plan", "batches", "loss")


class Target:
    reads_anything = False

    def __init__(self) -> None:
        from gemma4_core import build_optimizer, load_pretrained
        from gemma4_core.training.data.batches import Batches
        from gemma4_core.training.data.examples import Encoding, read_examples
        from gemma4_core.training.trainer import Plan, Trainer

        self.place = tempfile.TemporaryDirectory()
        self.root = Path(self.place.name)
        write_sample(small_checkpoint(), self.root / "model")
        data = self.root / "train.jsonl"
        data.write_bytes(b'{"text": "one two three"}\n{"prompt": "a", "completion": "b"}\n')
        model = load_pretrained(self.root / "model", device="cpu", dtype="float32")
        optimizer = build_optimizer(model, "adamw", 1e-3, trainable=["*.mlp.down_proj.*"])
        examples = read_examples(data, model.processor, Encoding(32))
        self.trainer = Trainer(model, optimizer, Batches(examples, model.processor, batch_size=1), Plan(steps=4))

    def seeds(self) -> Sequence[Sample]:
        self.trainer.save(self.root / "saved")
        return [folder_sample(self.root / "saved")]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance = rng.random()
        if chance < 0.05:
            return mutate_files(rng, sample)
        if chance < 0.5:
            return {**sample, RUN: mutate_json(rng, sample.get(RUN, b"{}"), WORDS)}
        name = WEIGHTS if chance < 0.6 else STATE
        content = sample.get(name, b"")
        if chance < 0.7 and isinstance(content, bytes):
            # numbers that no training makes
            header, body = split(content)
            if len(body) >= 4:
                at = rng.randrange(len(body) // 4) * 4
                odd = rng.choice((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\0\0\x80\xbf"))
                return {**sample, name: joined(header, body[:at] + odd + body[at + 4 :])}
        return {**sample, name: mutate_tensors(rng, content)}

    def run(self, folder: Path) -> None:
        self.trainer.resume(folder)
        assert 0 <= self.trainer.step <= self.trainer.total

