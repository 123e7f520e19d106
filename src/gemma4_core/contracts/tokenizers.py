"""Tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gemma4_core.contracts.context import Context, Matches, always


class StreamDecoder(Protocol):
    """Turns ids into text as they come."""

    def add(self, token: int) -> str:
        """The text that is complete now, perhaps empty: bytes of an unfinished character are held back."""

    def flush(self) -> str:
        """What was held back, with U+FFFD for an unfinished character."""


class Tokenizer(Protocol):
    """A tokenizer for one folder."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens by their text."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; nothing is added. Special tokens in it are recognised; with ``special=False`` their spellings
        are text like any other. Raises TokenizerError."""

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids, invalid UTF-8 as U+FFFD. Raises TokenizerError for an id outside the vocabulary."""

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A fresh incremental decoder."""


@runtime_checkable
class ByteTokenizer(Tokenizer, Protocol):
    """A tokenizer whose text is the joined bytes of its tokens, as those of released models are. Constraints need it
    where a token may be a part of a character."""

    def piece(self, token: int) -> bytes | None:
        """The bytes of an id, None where no token has it."""

    def digest(self) -> str:
        """A hash of all that decides which ids a text has and which bytes an id: what was made for one tokenizer, and
        kept on disk, is right for another one of equal digest."""


@dataclass(frozen=True)
class TokenizerBackend:
    """A tokenizer library. ``matches`` says whether it can serve the folder."""

    name: str
    summary: str
    load: Callable[[Context], Tokenizer]
    """Load the folder's tokenizer. Raises TokenizerError."""
    matches: Matches = always
    priority: int = 0
