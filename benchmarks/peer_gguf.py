"""A GGUF file of a checkpoint without tokenizer files, by llama.cpp's own converter; compare.py runs this.

    LLAMA_CPP=/path/to/llama.cpp python benchmarks/peer_gguf.py FOLDER --outfile FILE.gguf --outtype bf16

Needs what convert_hf_to_gguf.py needs (torch, transformers, gguf). The vocabulary comes from the vocabulary-only GGUF
of Gemma 4 in llama.cpp's sources, since random checkpoints have none.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

SOURCES = Path(os.environ["LLAMA_CPP"])
sys.path[:0] = [str(SOURCES), str(SOURCES / "gguf-py")]

import gguf  # noqa: E402
from conversion import get_model_class  # noqa: E402


def set_vocab(model) -> None:
    """Copy every ``tokenizer.`` field of the vocabulary-only file."""
    reader = gguf.GGUFReader(SOURCES / "models" / "ggml-vocab-gemma-4.gguf")
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            inner = {"sub_type": field.types[-1]} if kind == gguf.GGUFValueType.ARRAY else {}
            model.gguf_writer.add_key_value(key, field.contents(), kind, **inner)


def with_tokenizer(folder: Path, target: Path) -> None:
    """Links to the checkpoint's files, and a tokenizer.json that only declares how many tokens there are: the converter
    cuts the embedding to that number."""
    for path in folder.resolve().iterdir():
        if path.name != "tokenizer.json":
            (target / path.name).symlink_to(path)
    text = json.loads((folder / "config.json").read_text("utf-8"))
    count = text.get("text_config", text)["vocab_size"]
    vocab = {str(number): number for number in range(count)}
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))


get_model_class("Gemma4ForCausalLM").set_vocab = set_vocab
sys.argv[0] = str(SOURCES / "convert_hf_to_gguf.py")
with tempfile.TemporaryDirectory() as linked:
    with_tokenizer(Path(sys.argv[1]), Path(linked))
    sys.argv[1] = linked
    runpy.run_path(sys.argv[0], run_name="__main__")
