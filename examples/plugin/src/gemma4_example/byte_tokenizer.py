"""Tokenizer ``bytes``: one id per byte of UTF-8, after the special tokens that ``bytes_tokenizer.json`` lists.

The file is an object such as ``{"special": ["<pad>", "<eos>", "<bos>"]}``; byte b has the id ``len(special) + b``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence

from gemma4_core import Context, TokenizerBackend, TokenizerError, hookimpl

FILE = "bytes_tokenizer.json"


class ByteTokenizer:
    """Special tokens first, then the 256 bytes."""

    def __init__(self, special: Sequence[str]) -> None:
        self.special_tokens = {text: number for number, text in enumerate(special)}
        self.names = list(special)
        self.vocab_size = len(special) + 256
        longest_first = sorted(special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if special else None

    def encode(self, text: str, special: bool = True) -> list[int]:
        try:
            pieces = self._split.split(text) if self._split and special else [text]
            ids: list[int] = []
            for piece in pieces:
                known = self.special_tokens.get(piece) if special else None
                ids += [known] if known is not None else [len(self.names) + byte for byte in piece.encode()]
            return ids
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text holds a lone surrogate at character {error.start}") from error

    def piece(self, token: int, skip_special: bool) -> bytes:
        """The bytes of an id; those of U+FFFD outside the vocabulary."""
        if not 0 <= token < self.vocab_size:
            return "\N{REPLACEMENT CHARACTER}".encode()
        if token < len(self.names):
            return b"" if skip_special else self.names[token].encode()
        return bytes([token - len(self.names)])

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return b"".join(self.piece(token, skip_special) for token in ids).decode("utf-8", "replace")

    def stream(self, skip_special: bool = False) -> ByteStream:
        return ByteStream(self, skip_special)


class ByteStream:
    """Text as it becomes complete: bytes of an unfinished character are held back.

    A model with a padded vocabulary may produce an id that no token has; its answer goes on with U+FFFD.
    """

    def __init__(self, tokenizer: ByteTokenizer, skip_special: bool) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.tokenizer.piece(token, self.skip_special))

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


def load(context: Context) -> ByteTokenizer:
    path = context.file(FILE)
    if path is None:
        raise TokenizerError(f"{context.folder}: has no {FILE}")
    try:
        special = json.loads(path.read_text())["special"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path}: is not an object with a list 'special': {str(error)[:200]}") from error
    if not isinstance(special, list) or not all(isinstance(text, str) and text for text in special):
        raise TokenizerError(f"{path}: 'special' is not a list of texts")
    return ByteTokenizer(special)


@hookimpl
def gemma4_tokenizers() -> list[TokenizerBackend]:
    return [
        TokenizerBackend(
            name="bytes",
            summary="one id per byte, with bytes_tokenizer.json",
            load=load,
            matches=lambda context: context.file(FILE) is not None,
            priority=50,
        )
    ]
