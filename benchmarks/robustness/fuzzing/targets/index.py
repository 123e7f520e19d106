"""The index of a folder in several files, and those files' names."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._shared import open_checkpoint, plain, small_checkpoint
from fuzzing.tensors import joined, mutate_tensors, split
from fuzzing.values import mutate_json

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WORDS = (*SHARDS, "model.safetensors", "../outside.txt", "./" + SHARDS[0], "sub/../" + SHARDS[0], "/etc/hostname",
         SHARDS[0] + "/", "a" * 300 + ".safetensors", "weight_map", "metadata", "config.json", "\ud800.safetensors")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        files = dict(small_checkpoint())
        header, body = split(files.pop("model.safetensors"))  # type: ignore[arg-type]
        return [{**files, **two_shards(json.loads(header), body)}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance = rng.random()
        if chance < 0.15:
            return mutate_files(rng, sample, WORDS[:3])
        if chance < 0.3:
            name = rng.choice(SHARDS)
            return {**sample, name: mutate_tensors(rng, sample.get(name, b""))}
        return {**sample, INDEX: mutate_json(rng, sample.get(INDEX, b"{}"), WORDS)}

    def run(self, folder: Path) -> None:
        open_checkpoint(folder)


def two_shards(header: dict[str, dict[str, list[int]]], body: bytes) -> dict[str, bytes]:
    """A file's tensors in two files with an index."""
    header.pop("__metadata__", None)
    found: dict[str, bytes] = {}
    places = {}
    for number, shard in enumerate(SHARDS):
        entries, data = {}, b""
        for name in list(header)[number::2]:
            begin, end = header[name]["data_offsets"]
            entries[name] = {**header[name], "data_offsets": [len(data), len(data) + end - begin]}
            data += body[begin:end]
            places[name] = shard
        found[shard] = joined(plain(entries), data)
    return {**found, INDEX: plain({"metadata": {"total_size": len(body)}, "weight_map": places})}
