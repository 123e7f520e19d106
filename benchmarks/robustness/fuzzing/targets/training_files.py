"""Files and folders of training data: Parquet, Arrow, JSON lists, gzip, folders of datasets; columns and splits."""

from __future__ import annotations

import gzip
import io
import json
import random
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing.binary import mutate_bytes
from fuzzing.samples import Sample, mutate_files
from fuzzing.targets import messages
from fuzzing.targets._shared import MESSAGES, plain
from fuzzing.values import mutate_json

HOW = "how.json"
WORDS = (*messages.WORDS, "prompt", "completion", "split", "columns", "train", "validation", "chat", "_data_files",
         "filename", "_split", "splits", "data.parquet", "train-00000-of-00001.arrow", "..", "bytes", "conversations")
ROWS: Sequence[dict[str, Any]] = [
    {"prompt": "One?", "completion": "one", "images": None, "chat": None, "id": 1},
    {"prompt": "Two?", "completion": "two", "images": [{"bytes": b"\x89PNG\r\n\x1a\n", "path": "a.png"}], "chat": None,
     "id": 2},
    {"prompt": "Three?", "completion": "three", "images": [], "id": None, "chat": [
        {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]},
]
TALKS: Sequence[dict[str, Any]] = [{"messages": MESSAGES[1:3], "tools": None, "score": 0.5}] * 3


class Target(messages.Target):
    def seeds(self) -> Sequence[Sample]:
        import pyarrow
        from pyarrow import parquet

        def table(rows: Sequence[dict[str, Any]], **options: Any) -> bytes:
            held = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(list(rows)), held, **options)
            return held.getvalue()

        def arrow(rows: Sequence[dict[str, Any]], writer: Any) -> bytes:
            held, whole = io.BytesIO(), pyarrow.Table.from_pylist(list(rows))
            with writer(held, whole.schema) as file:
                file.write_table(whole, max_chunksize=2)
            return held.getvalue()

        how = plain({"columns": None, "split": None})
        mapped = plain({"columns": {"messages": "chat"}, "split": "train"})
        stream, file = pyarrow.ipc.new_stream, pyarrow.ipc.new_file
        lines = b"\n".join(plain(row) for row in TALKS)
        saved = plain({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})
        return [
            {HOW: how, "data/data.parquet": table(ROWS)},
            {HOW: how, "data/data.parquet": table(TALKS, compression="none", use_dictionary=False, row_group_size=1)},
            {HOW: mapped, "data/data/train-00000-of-00001.parquet": table(ROWS, compression="none"),
             "data/data/test-00000-of-00001.parquet": table(TALKS)},
            {HOW: how, "data/train.arrow": arrow(TALKS, file)},
            {HOW: how, "data/state.json": saved, "data/data-00000-of-00001.arrow": arrow(ROWS, stream)},
            {HOW: plain({"columns": None, "split": "train"}), "data/dataset_dict.json": plain({"splits": ["train"]}),
             "data/train/state.json": saved, "data/train/data-00000-of-00001.arrow": arrow(TALKS, stream)},
            {HOW: how, "data/list.json": json.dumps(TALKS, indent=1).encode()},
            {HOW: how, "data/train.jsonl.gz": gzip.compress(lines, mtime=0), "data/valid.jsonl": lines},
        ]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        chance = rng.random()
        if chance < 0.06:
            return mutate_files(rng, sample, ("data/train.jsonl", "data/other.parquet", "data/dataset_info.json"))
        name = HOW if chance < 0.2 else rng.choice(sorted(sample))
        content = sample.get(name, b"")
        if isinstance(content, str):
            return sample
        if name.endswith(".json") and chance < 0.9:
            return {**sample, name: mutate_json(rng, content or b"{}", WORDS)}
        if name.endswith(".gz") and chance < 0.7:
            with suppress(OSError, EOFError, zlib.error):
                content = gzip.decompress(content)
            return {**sample, name: gzip.compress(mutate_json(rng, content[:4096] or b"{}", WORDS), mtime=0)}
        return {**sample, name: mutate_bytes(rng, content)}

    def run(self, folder: Path) -> None:
        from gemma4_core.training.data import Encoding, read_examples, read_records

        if not (folder / HOW).is_file():
            return
        try:
            how = json.loads((folder / HOW).read_bytes())
        except (ValueError, RecursionError, OSError):
            return
        columns, split = (how.get("columns"), how.get("split")) if isinstance(how, dict) else (None, None)
        columns = columns if isinstance(columns, dict) else None
        split = split if isinstance(split, str) else None
        records = read_records(folder / "data", columns, split)
        found = read_examples(folder / "data", self.processor, Encoding(64), records)
        assert found.tokens >= found.targets >= 0 and found.digest
