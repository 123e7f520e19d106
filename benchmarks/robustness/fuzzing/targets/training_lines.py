"""JSON Lines of training data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets import messages
from fuzzing.targets._shared import MESSAGES, plain
from fuzzing.values import mutate_json

FILE = "train.jsonl"
WORDS = (*messages.WORDS, "prompt", "completion", "images", "weight", "train", "chat_template_kwargs", "label")


class Target(messages.Target):
    def seeds(self) -> Sequence[Sample]:
        lines = [
            {"messages": MESSAGES[:3]}, {"prompt": "Three?", "completion": "three"}, {"text": "one two three"},
            {"messages": [MESSAGES[1], messages.CALL, messages.RESULT, MESSAGES[2]], "tools": messages.TOOLS},
            {"messages": [{"role": "user", "content": "See <|image|>"}, MESSAGES[2]], "images": ["a.png"]},
        ]
        whole = b"\n".join(plain(line) for line in lines[:4])
        return [{FILE: whole}, *({FILE: plain(line)} for line in lines)]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        content = sample.get(FILE, b"")
        if rng.random() < 0.03 or isinstance(content, str):
            return mutate_files(rng, sample, (FILE,))
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = mutate_json(rng, lines[at] or b"{}", WORDS)
        return {**sample, FILE: b"\n".join(lines)}

    def run(self, folder: Path) -> None:
        from gemma4_core.training.data.examples import Encoding, read_examples
        from gemma4_core.training.data.records import read_records

        path = folder / FILE
        records = read_records(path)
        found = read_examples(path, self.processor, Encoding(64), records)
        assert found.tokens >= found.targets >= 0
