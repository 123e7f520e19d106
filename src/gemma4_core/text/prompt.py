"""A prompt's ids: the beginning-of-sequence token exactly once."""

from __future__ import annotations

from gemma4_core.contracts import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str, bos_id: int | None) -> list[int]:
    """Ids of a raw prompt or of a rendered template, with ``bos_id`` in front where it is missing (None adds nothing).

    Special tokens in the text are recognised; models answer badly without the first token, and with two of them.
    Raises TokenizerError.
    """
    ids = tokenizer.encode(text)
    return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]


def has_text(tokenizer: Tokenizer | None) -> bool:
    """Whether there is a tokenizer that knows text; the ``raw`` one does not."""
    return tokenizer is not None and getattr(tokenizer, "has_text", True)
