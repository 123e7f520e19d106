"""Keyword arguments of the Python API with values that nobody would pass on purpose."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzzing.samples import Sample, write_sample
from fuzzing.targets._shared import MESSAGES, open_checkpoint, plain, small_checkpoint
from fuzzing.values import mutate_json

CALLS: dict[str, dict[str, Any]] = {
    "load": {"format": "auto", "tokenizer": "auto", "modalities": ["text"], "dtype": "float32", "max_context": 64,
             "ple": "auto", "beam": 0, "options": {"image_tokens": 70}},
    "processor": {"tokenizer": "auto", "modalities": ["text"], "image_tokens": 70, "allow_urls": False,
                  "audio_truncate": True},
    "prepare": {"prompt_or_messages": MESSAGES, "images": None, "audio": None, "videos": None, "tools": None,
                "thinking": True, "add_generation_prompt": True, "image_tokens": 70},
    "prepare text": {"prompt_or_messages": "One <|image|>", "images": ["data:image/png;base64,AAAA"]},
    "prepare ids": {"prompt_or_messages": [2, 5, 19], "images": None},
    "sampling": {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 1},
    "batch": {"input_ids": [[2, 5, 9]], "labels": [[2, -100, 9]]},
    "preset": {"name": "tiny-e2b", "towers": True, "text_only": False},
}
OBJECTS = ("@bytes", "@array", "@object", "@nan", "@empty", "@set", "@image", "@mixed")
WORDS = (*OBJECTS, *(key for call in CALLS.values() for key in call), "cpu", "bf16", "vision", "<|image|>", "<bos>")


class Target:
    reads_anything = True

    def __init__(self) -> None:
        from tiny_model import tiny_config

        from gemma4_core import GemmaMultimodalProcessor

        self.place = tempfile.TemporaryDirectory()
        self.root = Path(self.place.name)
        write_sample(small_checkpoint(), self.root / "model")
        write_sample({**small_checkpoint(), "config.json": plain(tiny_config())}, self.root / "towers")
        self.processor = GemmaMultimodalProcessor.from_pretrained(self.root / "towers")

    def seeds(self) -> Sequence[Sample]:
        return [{"call.json": plain({"call": name, "arguments": arguments})} for name, arguments in CALLS.items()]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        call = json.loads(sample["call.json"])
        changed = mutate_json(rng, plain(call["arguments"]), WORDS)
        try:
            arguments = json.loads(changed)
        except (ValueError, RecursionError):
            return sample
        call["arguments"] = arguments if isinstance(arguments, dict) else call["arguments"]
        return {"call.json": plain(call)}

    def run(self, folder: Path) -> None:
        call = json.loads((folder / "call.json").read_bytes())
        self.call(call["call"], {key: replaced(value) for key, value in call["arguments"].items()})

    def call(self, name: str, given: dict[str, Any]) -> None:
        """Call a function with arguments; unknown names are passed only to functions that take any."""
        from gemma4_core import GemmaMultimodalProcessor, GemmaTrainingBatch
        from gemma4_core.config import preset_dict
        from gemma4_core.generation.sampling import Sampling

        known = {key: given[key] for key in CALLS[name] if key in given}
        if name == "load":
            open_checkpoint(self.root / "towers", **known)
        elif name == "processor":
            GemmaMultimodalProcessor.from_pretrained(self.root / "towers", **given)
        elif name.startswith("prepare"):
            given.setdefault("prompt_or_messages", "One")
            self.processor.prepare_inputs(given.pop("prompt_or_messages"), **given)
        elif name == "sampling":
            Sampling.of(known.pop("temperature", 0.0), **known)
        elif name == "batch":
            if "input_ids" in known:
                GemmaTrainingBatch(**known)
        elif isinstance(known.get("name"), str):
            preset_dict(known["name"], known.get("towers") is True, known.get("text_only") is True)


def replaced(value: Any) -> Any:
    """A value with words such as ``@array`` replaced by what they stand for."""
    import numpy as np
    from PIL import Image

    if isinstance(value, list):
        return [replaced(item) for item in value]
    if isinstance(value, dict):
        return {key: replaced(item) for key, item in value.items()}
    if not isinstance(value, str) or value not in OBJECTS:
        return value
    return {"@bytes": b"\xff\0", "@array": np.zeros((2, 3)), "@object": object(), "@nan": float("nan"),
            "@empty": np.zeros((0, 0, 3), np.uint8), "@set": {1}, "@image": Image.new("L", (3, 1)),
            "@mixed": np.array([1, "a", None], object)}[value]
