"""How much longer a tokenizer's rules can make a text, computed from the rules: a file of a hundred bytes can demand
gigabytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from gemma4_core.errors import TokenizerError
from gemma4_core.formatting import shown

LIMIT = 64
"""Bytes that a byte of text may become. Gemma's space becomes three; Unicode's own rules reach eleven."""
_FACTORS = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "BertNormalizer": 12, "ByteLevel": 3,
            "Metaspace": 4, "WordPiece": 2, "CTC": 2, "BPEDecoder": 2}  # fmt: skip
_NESTED = ("normalizers", "pretokenizers", "decoders")


def steps(rules: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder of tokenizer.json, with sequences flattened."""
    if isinstance(rules, dict):
        inner = [rules[key] for key in _NESTED if isinstance(rules.get(key), list)]
        if inner:
            for step in inner[0]:
                yield from steps(step)
        else:
            yield rules


def check_growth(rules: Any, where: str) -> int:
    """The factor by which rules of tokenizer.json can lengthen a text. Raises TokenizerError above ``LIMIT``."""
    factor = 1.0
    for step in steps(rules):
        factor *= _factor(step)
        if factor > LIMIT:
            raise TokenizerError(f"{where} can make a text {LIMIT} times longer or more, with {shown(step, 120)}: no "
                                 "tokenizer of a language model does; fetch the file again from where you trust it")
    return int(-(-factor // 1))


def _factor(step: dict[str, Any]) -> float:
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "Replace":
        new = len(str(step.get("content", "")).encode("utf-8", "replace"))
        old = pattern.get("String") if isinstance(pattern, dict) else None
        # an expression may match nothing at all, between any two characters, as the empty string does
        return max(1.0, new / len(old.encode("utf-8", "replace"))) if isinstance(old, str) and old else 1.0 + new
    if kind == "Prepend":  # before every part of the text between added tokens
        return 1.0 + len(str(step.get("prepend", "")).encode("utf-8", "replace"))
    if kind == "Precompiled":
        try:
            return charsmap_factor(base64.b64decode(str(step.get("precompiled_charsmap", ""))))
        except ValueError:
            return 1.0  # the library refuses it
    return _FACTORS.get(str(kind), 1)


def charsmap_factor(charsmap: bytes) -> float:
    """The same for SentencePiece's table of replacements: the size of an index, the index, and texts that end in NUL.
    Characters that Unicode makes much longer have three bytes."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(1.0, max(map(len, texts.split(b"\0")), default=0) / 3)
