"""Shared by media targets: one processor, to which each case gives its file."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzzing.binary import LARGEST, mutate_media
from fuzzing.samples import Sample, mutate_files, write_sample
from fuzzing.targets._shared import plain, small_checkpoint


class MediaTarget:
    """Prepares the medium ``medium`` of a folder."""

    reads_anything = False
    keyword = ""

    def __init__(self) -> None:
        from tiny_model import tiny_config

        from gemma4_core import GemmaMultimodalProcessor

        self.place = tempfile.TemporaryDirectory()
        files = {name: content for name, content in small_checkpoint().items() if name != "model.safetensors"}
        files["config.json"] = plain(tiny_config())
        files["processor_config.json"] = plain({"image_processor": {"max_soft_tokens": 70}})
        write_sample(files, Path(self.place.name))
        self.processor = GemmaMultimodalProcessor.from_pretrained(Path(self.place.name))

    def media(self) -> Sequence[bytes]:
        """Sound files."""
        raise NotImplementedError

    def seeds(self) -> Sequence[Sample]:
        return [{"medium": content} for content in self.media()]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        content = sample.get("medium", b"")
        if rng.random() < 0.02 or isinstance(content, str):
            return mutate_files(rng, sample, pipes=False)  # a user may name a pipe, and it is read
        return {**sample, "medium": mutate_media(rng, content)[:LARGEST]}

    def run(self, folder: Path) -> None:
        prepared: Any = self.processor.prepare_inputs("Look.", **{self.keyword: [str(folder / "medium")]})
        for array in prepared.features.values():
            assert array.ndim
