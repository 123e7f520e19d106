"""Lines of ``gemma4 batch``, and the output that an earlier run left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets import Broken, messages
from fuzzing.targets._shared import MESSAGES, plain
from fuzzing.values import mutate_json

LINES, OUTPUT = "in.jsonl", "out.jsonl"
ASKED = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "n": 2, "stop": ["x"], "seed": 1,
         "logit_bias": {"5": -1}, "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.1}
WORDS = (*messages.WORDS, *ASKED, "prompt", "text", "custom_id", "id", "body", "url", "method", "response_format",
         "tool_choice", "tools", "error", "response", "max_completion_tokens", "reasoning_effort")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        lines = [
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
             "body": {"messages": MESSAGES[:2], **ASKED}},
            {"prompt": "Three?", "id": "b", "tools": messages.TOOLS}, {"text": "one two three"},
            {"messages": [MESSAGES[1], messages.CALL, messages.RESULT]},
        ]
        rows = [{"id": f"batch_req_{id}", "custom_id": id, "response": None, "error": None} for id in ("a", "b")]
        whole = b"".join(plain(line) + b"\n" for line in lines)
        return [{LINES: whole, OUTPUT: b"".join(plain(row) + b"\n" for row in rows)}, {LINES: whole},
                *({LINES: plain(line)} for line in lines)]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        name = OUTPUT if OUTPUT in sample and rng.random() < 0.3 else LINES
        content = sample.get(name, b"")
        if rng.random() < 0.05 or isinstance(content, str):
            return mutate_files(rng, sample, (name,))
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = mutate_json(rng, lines[at] or b"{}", WORDS)
        return {**sample, name: b"\n".join(lines)}

    def run(self, folder: Path) -> None:
        from gemma4_plugins.commands.batch.input_rows import Batch, Defaults, Fault
        from gemma4_plugins.commands.batch.row_file import Outputs

        batch = Batch.scanned(folder / LINES, Defaults({}))
        for line in batch.again():
            if isinstance(line, Fault) and not (line.message.isprintable() and len(line.message) <= 400):
                raise Broken("a fault is one sentence", line.message)
        outputs = Outputs(folder / OUTPUT, None, overwrite=False)
        try:
            outputs.lock(batch.ids)
            outputs.begin()
        finally:
            outputs.close()
        again = Outputs(folder / OUTPUT, None, overwrite=False)
        try:
            again.lock(batch.ids)
        finally:
            again.close()
        if again.done != outputs.done:
            raise Broken("what was there is there again", f"{outputs.done} {again.done}")
