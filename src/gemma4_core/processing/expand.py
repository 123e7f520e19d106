"""Placeholders in prompts: counted, placed, expanded, turned into ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gemma4_core.errors import InputError, TokenizerError

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.contracts import ModalityTower, StreamDecoder, Tokenizer


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_counts(spec: ModalityTower, written: int, media: int, what: str = "") -> None:
    """Raise InputError where placeholders, or ``what`` else, are written and their number is not that of the media."""
    if written != media:
        given = f"{media} {spec.media_option.keyword} was" if media == 1 else f"{media} {spec.media_keyword} were"
        raise InputError(f"the prompt holds {counted(written, what or f'{spec.placeholder} placeholder')} but "
                         f"{given} given ({spec.media_option.flag}, {spec.media_keyword}=); the numbers must be equal")


def place_text(text: str, spec: ModalityTower, count: int, begin: str | None) -> str:
    """A raw prompt with ``count`` placeholders before it (behind its ``begin`` token) or after it."""
    holders = spec.placeholder * count
    if spec.placed == "after":
        return text + holders
    start = begin if begin and text.startswith(begin) else ""
    return start + holders + text[len(start) :]


def tag_of(spec: ModalityTower) -> str:
    """The tag that datasets write where a medium stands, such as ``<image>``."""
    return f"<{spec.media_option.keyword}>"


def place_tags(text: str, spec: ModalityTower, count: int) -> str:
    """A raw prompt with placeholders in place of tags, where media were given and it has no placeholder. Raises
    InputError where their numbers differ."""
    if not count or spec.placeholder in text or tag_of(spec) not in text:
        return text
    check_counts(spec, text.count(tag_of(spec)), count, f"{tag_of(spec)} tag")
    return text.replace(tag_of(spec), spec.placeholder)


def expand_texts(texts: Sequence[str], expansions: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace the placeholders of each kind by its expansions, in order from text to text."""
    if not expansions:
        return list(texts)
    waiting = {placeholder: iter(found) for placeholder, found in expansions.items()}
    pattern = re.compile("|".join(map(re.escape, waiting)))
    return [pattern.sub(lambda match: next(waiting[match.group()]), text) for text in texts]


def expand_ids(ids: Sequence[int], expansions: Mapping[int, Sequence[Sequence[int]]]) -> list[int]:
    """Replace placeholder ids by their expansions, in order."""
    waiting = {placeholder: iter(found) for placeholder, found in expansions.items()}
    return [new for token in ids for new in (next(waiting[token]) if token in waiting else [token])]


class MediaTokenizer:
    """A tokenizer that knows the media tokens of the config, whatever the folder's tokenizer makes of them."""

    def __init__(self, tokenizer: Tokenizer, config: GemmaConfig, specs: Sequence[ModalityTower]) -> None:
        self.inner = tokenizer
        known = {
            text: number
            for spec in specs
            for text, number in (
                spec.token_ids(config) if spec.token_ids else {spec.placeholder: spec.soft_token_id(config)}
            ).items()
        }
        special = tokenizer.special_tokens
        self.lacking = {text: number for text, number in known.items() if special.get(text) != number}

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens of the folder and of the modalities."""
        return {**self.inner.special_tokens, **self.lacking}

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text, media tokens recognised where special tokens are. Raises TokenizerError."""
        if not special:
            return self.inner.encode(text, special=False)
        if not self.lacking:
            return self.inner.encode(text)
        pattern = "(" + "|".join(map(re.escape, self.lacking)) + ")"
        ids: list[int] = []
        for piece in re.split(pattern, text):
            if piece in self.lacking:
                ids.append(self.lacking[piece])
            elif piece:
                ids += self.inner.encode(piece)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return self.inner.decode(ids, skip_special)

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        return self.inner.stream(skip_special)


def check_soft_tokens(spec: ModalityTower, found: int, wanted: int) -> None:
    """Raise TokenizerError where the ids do not hold the soft tokens that the media take."""
    if found != wanted:
        raise TokenizerError(f"the prompt's ids hold {found} tokens for {spec.placeholder} where the media take "
                             f"{wanted}; the folder's tokenizer does not match its config")
