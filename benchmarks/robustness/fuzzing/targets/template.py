"""Chat templates from a jinja grammar that favours growth, recursion and sandbox escapes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.binary import mutate_bytes
from fuzzing.jinja import mutate_template
from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import MESSAGES, TEMPLATES, plain, small_checkpoint

FILE = "chat_template.jinja"
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        short = b"{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        texts = [small_checkpoint()[FILE], (TEMPLATES / "launch.jinja").read_bytes(), short, short]
        return [*({FILE: text} for text in texts), {"tokenizer_config.json": plain({"chat_template": short.decode()})}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance = rng.random()
        if chance < 0.02:
            return mutate_files(rng, sample, (FILE, "chat_template.json", "tokenizer_config.json"))
        content = sample.get(FILE, b"")
        if isinstance(content, str):
            return sample
        if chance < 0.1:
            return {**sample, FILE: mutate_bytes(rng, content)}
        text = mutate_template(rng, content.decode("utf-8", "replace"))
        return {**sample, FILE: text.encode("utf-8", "surrogatepass")}

    def run(self, folder: Path) -> None:
        from gemma4_core.text import ChatTemplate

        template = ChatTemplate.load(folder)
        if template is not None:
            template.render(MESSAGES, tools=TOOLS)
