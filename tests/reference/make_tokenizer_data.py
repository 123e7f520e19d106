"""Make the small tokenizers that tests and random checkpoints use from the released tokenizer.json.

Run by hand, with the packages ``tokenizers==0.23.3`` and ``sentencepiece==0.2.3``::

    python tests/reference/make_tokenizer_data.py TOKENIZER.json[.xz] VECTORS.inp VECTORS.out

VECTORS are the 46 texts and ids that llama.cpp checks its tokenizers with (``ggml-vocab-*.gguf.inp`` and ``.out``);
the script first checks them against the released vocabulary. It writes

- ``src/gemma4_core/data/tokenizer/tokenizer.json``: 512 tokens, for checkpoints with any ``vocab_size`` from 512;
- ``tests/data/tokenizer/tokenizer.json``: the same 512 and after them every token that the vectors pass through;
- ``tests/data/tokenizer/vectors.json``: each text with its released ids and with its ids in that vocabulary;
- ``tests/data/tokenizer/tokenizer.model``: a small SentencePiece model trained here.

Why a subset gives the same ids: BPE applies the lowest-ranked merge that applies, again and again. The subset keeps
the order of merges and every merge that a text's derivation uses, and adds none, so that each step chooses the same.

Ids of all three (released ids in the second column):

====  ========  ====================      ====  ========  ====================
  id  released  token                       id  released  token
====  ========  ====================      ====  ========  ====================
   0         0  ``<pad>``                   12        98  ``<|think|>``
   1         1  ``<eos>``                   13       100  ``<|channel>``
   2         2  ``<bos>``                   14       101  ``<channel|>``
   3         3  ``<unk>``                   15       105  ``<|turn>``
   4         4  ``<mask>``                  16       106  ``<turn|>``
   5        46  ``<|tool>``                 17    255999  ``<|image>``
   6        47  ``<tool|>``                 18    256000  ``<|audio>``
   7        48  ``<|tool_call>``            19    258880  ``<|image|>``
   8        49  ``<tool_call|>``            20    258881  ``<|audio|>``
   9        50  ``<|tool_response>``        21    258882  ``<image|>``
  10        51  ``<tool_response|>``        22    258883  ``<audio|>``
  11        52  ``<|"|>``                   23    258884  ``<|video|>``
24..279  238..493  bytes ``<0x00>``..``<0xFF>``   280..  ordinary tokens in the released order
====  ========  ====================      ====  ========  ====================
"""

from __future__ import annotations

import io
import json
import lzma
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "src" / "gemma4_core" / "data" / "tokenizer"
TESTS = ROOT / "tests" / "data" / "tokenizer"
TINY_SIZE = 512
SEPARATOR = "\n__ggml_vocab_test__\n"
CORPUS = (
    "The weather in Oslo is cold today, and the wind comes from the north-east at seven metres per second.",
    "A tokenizer turns a text into numbers; another part of the program turns the numbers into a text again.",
    "Where are you going? I'm going to the station, because the train to Trondheim leaves at 14:25.",
    "def add(first, second):\n    return first + second\n\nprint(add(1, 2))",
    "Please write a short answer. Then explain, step by step, why the answer is right and what could be wrong.",
    "Der schnelle braune Fuchs springt über den faulen Hund; le renard brun saute par-dessus le chien paresseux.",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"unit\": \"celsius\"}}",
    "She sells sea shells by the sea shore, and the shells that she sells are surely sea shells.",
)
CHAT_WORDS = ("user", "model", "system", "thought", "call", "▁the", "▁and")
SPECIAL_TEXTS = (
    "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n",
    '<|channel>thought\nHello<channel|><|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|tool_response>',
    "a<|image>\n<|image|><|image|><image|> <|audio><|audio|><audio|><|video|>",
    "<eos><pad><unk><mask> < eos><|turn",
    "\0 \x7f \u00e9\u0301 \u2028 \U0001f469\u200d\U0001f4bb \u2581",
    "tab\tnew\r\nline",
)


def read_text(path: Path) -> str:
    data = path.read_bytes()
    return (lzma.decompress(data) if path.suffix == ".xz" else data).decode()


def derivation(text: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int]) -> set[str]:
    """Every token that BPE passes through on its way to the ids of a normalised text without special tokens."""
    symbols, seen = list(text), {s for s in text if s in vocab}
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not pairs:
            return seen
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        seen.add(symbols[i])


def pieces_without_special(text: str, special: list[str]) -> list[str]:
    pieces = [text]
    for token in special:
        pieces = [part for piece in pieces for part in piece.split(token)]
    return [piece.replace(" ", "▁") for piece in pieces if piece]


def tiny_tokens(vocab: dict[str, int], ranks: dict[tuple[str, str], int], ordinary: list[str]) -> set[str]:
    """ASCII characters, short runs of space, words of the chat format, then the earliest short ASCII tokens."""
    chosen = {chr(c) for c in range(33, 127)} | {"▁", "\n", "\t", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"}
    room = TINY_SIZE - 280
    for word in CHAT_WORDS:
        chosen |= derivation(word, vocab, ranks)
    for token in ordinary:
        plain = token.replace("▁", "")
        if len(chosen) < room and plain.isascii() and plain.isalnum() and len(token) < 5:
            found = chosen | derivation(token, vocab, ranks)
            chosen = found if len(found) <= room else chosen
    assert chosen <= set(vocab) and len(chosen) == room
    return chosen


def reduced(released: dict[str, Any], special: list[str], tiny: set[str], more: set[str]) -> dict[str, Any]:
    """A tokenizer.json with the special tokens, the bytes, ``tiny`` and then ``more``, each in the released order."""
    vocab = released["model"]["vocab"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    order = special + bytes_ + sorted(tiny, key=vocab.__getitem__)
    order += sorted(more - set(order), key=vocab.__getitem__)
    known = set(order)
    merges = [m for m in released["model"]["merges"] if m[0] in known and m[1] in known and m[0] + m[1] in known]
    added = [dict(token, id=special.index(token["content"])) for token in released["added_tokens"]]
    model = dict(released["model"], vocab={token: i for i, token in enumerate(order)}, merges=merges)
    return dict(released, added_tokens=added, model=model)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT), path.stat().st_size, "bytes")


def train_sentencepiece(special: list[str], texts: list[str], path: Path) -> None:
    """Control symbols up to ``<|think|>``, user-defined ones after it: a real model has both."""
    lines = [line for line in "\n".join([*CORPUS, *texts]).splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        character_coverage=0.98, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        unk_piece="<unk>", control_symbols=special[4:13], user_defined_symbols=[*special[13:], "\n\n"],
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    print(path.relative_to(ROOT), path.stat().st_size, "bytes")


def main(tokenizer_path: str, inputs: str, outputs: str) -> None:
    source = read_text(Path(tokenizer_path))
    released, full = json.loads(source), Tokenizer.from_str(source)
    vocab = released["model"]["vocab"]
    ranks = {(a, b): rank for rank, (a, b) in enumerate(released["model"]["merges"])}
    special = [token["content"] for token in released["added_tokens"]]
    ordinary = [t for t, i in sorted(vocab.items(), key=lambda item: item[1]) if i >= 494 and t not in special]

    texts = Path(inputs).read_text(encoding="utf-8").split(SEPARATOR)
    wanted = [[int(i) for i in line.split()] for line in Path(outputs).read_text().split("\n")][: len(texts)]
    assert len(texts) == len(wanted) == 46
    for text, ids in zip(texts, wanted, strict=True):
        assert full.encode(text, add_special_tokens=False).ids == ids, text

    tiny = tiny_tokens(vocab, ranks, ordinary)
    texts += SPECIAL_TEXTS
    passed = {s for text in texts for piece in pieces_without_special(text, special)
              for s in derivation(piece, vocab, ranks)}
    write(TINY / "tokenizer.json", reduced(released, special, tiny, set()))
    larger = reduced(released, special, tiny, passed)
    write(TESTS / "tokenizer.json", larger)

    number = larger["model"]["vocab"]
    small, vectors = Tokenizer.from_file(str(TESTS / "tokenizer.json")), []
    for text in texts:
        encoding = full.encode(text, add_special_tokens=False)
        ids = [number[token] for token in encoding.tokens]
        assert small.encode(text, add_special_tokens=False).ids == ids, text
        vectors.append({"text": text, "released": encoding.ids, "ids": ids})
    write(TESTS / "vectors.json", vectors)
    train_sentencepiece(special, texts, TESTS / "tokenizer.model")
    print(len(number), "tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
