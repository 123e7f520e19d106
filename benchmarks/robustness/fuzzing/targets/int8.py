"""Folders of the int8 format: their config's mark, headers, scales, and weights as they are read."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, folder_sample, mutate_files, write_sample
from fuzzing.targets._shared import open_checkpoint, small_checkpoint
from fuzzing.tensors import joined, mutate_tensors, split
from fuzzing.values import mutate_json

FILE = "model.safetensors"
WORDS = ("gemma4_format", "int8", "bf16", "version", "quantization_config", "quantization", "dtype", "scale")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        from gemma4_core.quantize import quantize

        with tempfile.TemporaryDirectory() as place:
            write_sample(small_checkpoint(), Path(place) / "model")
            sample = folder_sample(quantize(Path(place) / "model", Path(place) / "int8"))
        self.names = tuple(name for name in sample if name.endswith(".safetensors"))
        return [sample]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance, name = rng.random(), rng.choice(self.names)
        content = sample.get(name, b"")
        if chance < 0.05:
            return mutate_files(rng, sample)
        if chance < 0.35:
            return {**sample, "config.json": mutate_json(rng, sample.get("config.json", b"{}"), WORDS)}
        if chance < 0.5 and isinstance(content, bytes):
            # scales that are zero, negative, infinite or NaN
            header, body = split(content)
            if len(body) >= 4:
                at = rng.randrange(len(body) // 4) * 4
                odd = rng.choice((b"\0\0\0\0", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\xbf", b"\x01\0\0\0"))
                return {**sample, name: joined(header, body[:at] + odd + body[at + 4 :])}
        return {**sample, name: mutate_tensors(rng, content)}

    def run(self, folder: Path) -> None:
        from gemma4_core.checkpoint.context import read_context
        from gemma4_core.checkpoint.opening import select_format

        open_checkpoint(folder)
        context = read_context(folder)
        source = select_format(context).open(context)
        try:
            for name, info in source.infos.items():
                if len(info.shape) == 2 and info.shape[0]:
                    source.row_reader(name, True)
        finally:
            source.close()
