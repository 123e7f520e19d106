"""The demo model's vocabulary: Gemma's special tokens and byte fallback, ASCII, digits one by one, and words."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from demo_model.questions import PICTURE_QUESTIONS, SOUND_QUESTIONS, picture_answers
from demo_model.texts import corpus

SIZE = 768
SPACE = "▁"
FIRST_ORDINARY = 280
"""Special tokens and bytes come before, with the ids of the package's small tokenizer."""
FRAME_WORDS = ("user", "model", "system")


def small_tokenizer() -> dict[str, Any]:
    """tokenizer.json of the package's small tokenizer: its special tokens, bytes and pipeline are taken over."""
    found: dict[str, Any] = json.loads((files("gemma4_core") / "data/tokenizer/tokenizer.json").read_text("utf-8"))
    return found


def trained_merges(room: int) -> tuple[list[str], list[list[str]]]:
    """Ordinary tokens and merges that make whole words of the corpus; none spans a space, a digit or a mark."""
    texts = [*corpus(), *picture_answers(), *PICTURE_QUESTIONS * 50, *SOUND_QUESTIONS * 50, *FRAME_WORDS * 500]
    tokenizer = Tokenizer(models.BPE())
    # a word with the space before it, or one character of anything else
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=_words(), behavior="isolated")
    alphabet = [chr(code) for code in range(33, 127)] + [SPACE, "\n", "\t"]
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator((text.replace(" ", SPACE) for text in texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    return sorted(vocab, key=vocab.__getitem__), model["merges"]


def _words() -> Any:
    from tokenizers import Regex

    return Regex(SPACE + r"?[A-Za-z]+|.|\n")


def demo_tokenizer() -> dict[str, Any]:
    """The whole tokenizer.json."""
    base = small_tokenizer()
    known: dict[str, int] = base["model"]["vocab"]
    head = sorted(known, key=known.__getitem__)[:FIRST_ORDINARY]
    ordinary, merges = trained_merges(SIZE - FIRST_ORDINARY)
    order = [*head, *ordinary]
    model = base["model"] | {"vocab": {token: i for i, token in enumerate(order)}, "merges": merges}
    return base | {"model": model}


def tokenizer_files() -> dict[str, bytes]:
    """Files of a checkpoint folder by name: tokenizer, its config, chat template."""
    folder = files("gemma4_core") / "data" / "tokenizer"
    text = json.dumps(demo_tokenizer(), ensure_ascii=False, separators=(",", ":")) + "\n"
    others = {name: (folder / name).read_bytes() for name in ("tokenizer_config.json", "chat_template.jinja")}
    return {"tokenizer.json": text.encode(), **others}


def vocabulary_size() -> int:
    """Tokens that there are; the model has as many rows."""
    return len(demo_tokenizer()["model"]["vocab"])


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
