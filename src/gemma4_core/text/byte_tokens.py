"""Token ids to text through bytes: what whole decoding and streaming share, so that they agree on every sequence."""

from __future__ import annotations

import codecs
import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from gemma4_core.errors import TokenizerError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PieceTokenizer(ABC):
    """A tokenizer whose text is the joined bytes of its tokens, invalid UTF-8 replaced.

    A subclass knows the bytes of a token; decoding, streaming and checks of ids are here. ``strip_spaces`` is how many
    spaces at the start of a text its encoder put there.
    """

    has_text = True

    def __init__(self, special_tokens: Mapping[str, int], strip_spaces: int = 0) -> None:
        self.special_tokens = dict(special_tokens)
        self.strip_spaces = strip_spaces
        self._special = frozenset(self.special_tokens.values())
        self._known: dict[int, bytes | None] = {}

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @abstractmethod
    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text, special tokens recognised unless ``special`` is off. Raises TokenizerError."""

    @abstractmethod
    def _find(self, token: int) -> bytes | None:
        """The bytes of an id, or None where no token has it."""

    def piece(self, token: int) -> bytes | None:
        """The bytes of an id, from the cache; None where no token has it."""
        if token not in self._known:
            self._known[token] = self._find(token) if 0 <= token < self.vocab_size else None
        return self._known[token]

    @abstractmethod
    def _content(self) -> bytes:
        """All that decides about ids and bytes besides special tokens, or a hash of it."""

    def digest(self) -> str:
        """A hash of all that decides which ids a text has and which bytes an id."""
        found = hashlib.sha256(repr((self.vocab_size, self.strip_spaces, self.special_tokens)).encode())
        found.update(self._content())
        return found.hexdigest()

    def skips(self, token: int) -> bool:
        """Whether this is a special token, left out of text with ``skip_special``."""
        return token in self._special

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids, invalid UTF-8 as U+FFFD. Raises TokenizerError for an id that no token has."""
        numbers = [token_number(token) for token in ids]
        for token in numbers:
            if self.piece(token) is None:
                raise unknown_id(token, self.vocab_size)
        stream = self.stream(skip_special)
        return "".join(map(stream.add, numbers)) + stream.flush()

    def stream(self, skip_special: bool = False) -> PieceStream:
        """A fresh incremental decoder. An id that no token has becomes U+FFFD: a model with a padded vocabulary may
        produce it, and its answer should go on."""
        return PieceStream(self, skip_special)


class PieceStream:
    """Incremental UTF-8 of a ``PieceTokenizer``."""

    def __init__(self, tokenizer: PieceTokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strip_spaces

    def add(self, token: int) -> str:
        """The text that is complete now; bytes of an unfinished character are held back."""
        if self._skip_special and self._tokenizer.skips(token):
            return ""
        piece = self._tokenizer.piece(token)
        return self._stripped(self._decoder.decode(REPLACEMENT.encode() if piece is None else piece))

    def flush(self) -> str:
        """U+FFFD for an unfinished character, else nothing."""
        text = self._stripped(self._decoder.decode(b"", True))
        self._decoder.reset()
        return text

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            self._strip = self._strip - 1 if text[0] == " " else 0
            text = text[1:] if text[0] == " " else text
        return text


def token_number(token: Any) -> int:
    """A token id as int; numpy integers are welcome. Raises TokenizerError."""
    if isinstance(token, bool) or not isinstance(token, SupportsIndex):
        raise TokenizerError(f"a token id is a whole number, not {str(token)[:40]!r} ({type(token).__name__})")
    return operator.index(token)


def unknown_id(token: int, vocab_size: int) -> TokenizerError:
    """The error for an id that no token has."""
    shown = str(token) if token.bit_length() < 100 else f"of {token.bit_length()} bits"
    return TokenizerError(f"token id {shown} is not in the tokenizer's vocabulary of {vocab_size} tokens")


def checked_text(text: str) -> str:
    """The text itself. Raises TokenizerError where it is not text or holds a lone surrogate, which UTF-8 lacks."""
    if not isinstance(text, str):
        raise TokenizerError(f"only text can be tokenized, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        code = f"U+{ord(text[fault.start]):04X}"
        raise TokenizerError(
            f"the text holds {code}, a lone surrogate, at character {fault.start}; "
            "it is not Unicode text: check the encoding it was read with"
        ) from None
    return text
