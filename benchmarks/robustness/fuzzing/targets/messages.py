"""Conversations and tool declarations as a program passes them."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, write_sample
from fuzzing.targets._shared import MESSAGES, plain, small_checkpoint
from fuzzing.targets.template import TOOLS
from fuzzing.values import mutate_json

ARGUMENTS = {"city": "Oslo", "n": [1, 2.5, None]}
CALL = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "name": "weather", "content": {"degrees": 7}}
PARTS = {"role": "user", "content": [{"type": "text", "text": "See."}, {"type": "image", "path": "a.png"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                                     {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}
WORDS = ("role", "content", "type", "text", "image", "tool_calls", "function", "arguments", "name", "parameters",
         "properties", "required", "user", "assistant", "model", "tool", "system", "developer", "reasoning_content",
         "tool_responses", "image_url", "audio", "path", "url", "description", "enum", "items", "messages", "tools",
         "nullable", "<|image|>", "<|turn>", "<turn|>", "weight", "<|tool_call>", '<|"|>')


class Target:
    reads_anything = True

    def __init__(self) -> None:
        from tiny_model import tiny_config

        from gemma4_core import GemmaMultimodalProcessor

        self.place = tempfile.TemporaryDirectory()
        files = {name: content for name, content in small_checkpoint().items() if name != "model.safetensors"}
        write_sample({**files, "config.json": plain(tiny_config())}, Path(self.place.name))
        self.processor = GemmaMultimodalProcessor.from_pretrained(Path(self.place.name))

    def seeds(self) -> Sequence[Sample]:
        talks = [MESSAGES, [*MESSAGES, CALL, RESULT], [PARTS], [MESSAGES[0], PARTS, MESSAGES[2], MESSAGES[3]]]
        return [{"talk.json": plain({"messages": talk, "tools": TOOLS, "thinking": False})} for talk in talks]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        return {"talk.json": mutate_json(rng, sample["talk.json"], WORDS)}

    def run(self, folder: Path) -> None:
        try:
            talk = json.loads((folder / "talk.json").read_bytes())
        except (ValueError, RecursionError):
            return
        if not isinstance(talk, dict) or "messages" not in talk:
            return
        self.processor.prepare_inputs(talk["messages"], tools=talk.get("tools"), thinking=bool(talk.get("thinking")))
