"""Token ids without text: no library, no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemma4_core.contracts import Context, StreamDecoder, TokenizerBackend
from gemma4_core.errors import TokenizerError
from gemma4_core.hookspecs import hookimpl


class RawTokenizer:
    """For folders without a tokenizer: every use of text is an error. ``has_text`` is False."""

    has_text = False
    vocab_size = 0
    special_tokens: Mapping[str, int] = {}

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Raises TokenizerError."""
        raise TokenizerError(f"there is no tokenizer for the text {text[:40]!r}: give token ids with --prompt-tokens "
                             "(in Python prompt_tokens=)")

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Raises TokenizerError."""
        raise TokenizerError("there is no tokenizer to decode token ids; use the ids themselves")

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """Raises TokenizerError."""
        raise TokenizerError("there is no tokenizer to decode token ids; use the ids themselves")


def load(context: Context) -> RawTokenizer:
    """A tokenizer that has no text."""
    return RawTokenizer()


@hookimpl
def gemma4_tokenizers() -> list[TokenizerBackend]:
    """Raw ids, for folders without a tokenizer."""
    summary = "token ids without text: --prompt-tokens 2,106,1234, in Python prompt_tokens="
    return [TokenizerBackend(name="raw", summary=summary, load=load)]
