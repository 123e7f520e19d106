"""tokenizer.model through the ``sentencepiece`` library, which is imported when a folder needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_bytes
from gemma4_core.contracts import Context, SideFile, TokenizerBackend
from gemma4_core.errors import TokenizerError
from gemma4_core.formatting import shown_path
from gemma4_core.hookspecs import hookimpl
from gemma4_core.text.byte_tokens import PieceTokenizer, checked_text
from gemma4_core.text.settings import TokenizerSettings, is_control
from gemma4_plugins.tokenizers.growth import LIMIT, charsmap_factor
from gemma4_plugins.tokenizers.guard import guarded

FILE = "tokenizer.model"
SIZE_LIMIT = 64 << 20
"""Bytes; a model of 262144 tokens has 5 million."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_QUIET = 3
"""The library's log level above which it writes nothing to stderr by itself."""


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model. Control tokens, which the library never sees in text, are split off before it."""

    def __init__(
        self, processor: Any, pieces: list[bytes], specials: Mapping[str, int], added: Mapping[str, int]
    ) -> None:
        super().__init__(specials, strip_spaces=_dummy_prefix(processor))
        self._processor = processor
        self._pieces = pieces
        self._split = {text: number for text, number in (dict(added) | self.special_tokens).items() if text}
        longest_first = sorted(self._split, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self._split else None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._pieces)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are recognised unless ``special`` is off, and nothing is added. Raises
        TokenizerError."""
        ids: list[int] = []
        for part in self._pattern.split(checked_text(text)) if self._pattern and special else [checked_text(text)]:
            if special and part in self._split:
                ids.append(self._split[part])
            elif part:
                ids += self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        with guarded(f"{FILE} cannot encode the text", silent=False):
            ids: list[int] = self._processor.encode(text)
        return ids

    def _content(self) -> bytes:
        with guarded(f"{FILE} cannot be used"):
            model: bytes = self._processor.serialized_model_proto()
        return repr(sorted(self._split.items())).encode() + model

    def _find(self, token: int) -> bytes | None:
        return self._pieces[token] or None


def load(context: Context) -> SentencePieceTokenizer:
    """The folder's tokenizer.model with the tokens that tokenizer_config.json adds. Raises TokenizerError."""
    path = context.file(FILE)
    if path is None:
        where = f"{shown_path(context.path)}: no {FILE}" if context.path else f"without a folder there is no {FILE}"
        raise TokenizerError(f"{where}; choose --tokenizer raw and give token ids with --prompt-tokens (in Python "
                             "prompt_tokens=)")
    settings = TokenizerSettings.load(context)
    processor = _open(path)
    with guarded(f"{shown_path(path)} holds a damaged token"):
        names: list[str] = processor.id_to_piece(list(range(processor.vocab_size())))
        kinds = [(processor.is_byte(i), processor.is_control(i) or processor.is_unknown(i)) for i in range(len(names))]
        pieces = [
            bytes([int(name[3:5], 16)]) if byte else name.replace(_SPACE, " ").encode()
            for name, (byte, _) in zip(names, kinds, strict=True)
        ]
    numbers = {name: number for number, name in enumerate(names)}
    added = _added(settings, numbers, pieces)
    special = {token.content: number for number, token in settings.added.items() if token.special}
    special |= {name: numbers[name] for name in [*settings.named.values(), *settings.special] if name in numbers}
    special |= {name: i for name, i in (numbers | added).items() if is_control(name)}
    special |= {name: i for i, name in enumerate(names) if kinds[i][1]}
    with guarded(f"{shown_path(path)} cannot be used"):
        return SentencePieceTokenizer(
            processor, pieces, dict(sorted(special.items(), key=lambda item: item[1])), added
        )


def _open(path: Path | SideFile) -> Any:
    data = read_bytes(path, SIZE_LIMIT, TokenizerError)
    try:
        import sentencepiece
    except ImportError as fault:
        raise TokenizerError(
            f"{shown_path(path)} needs the sentencepiece library ({fault}): pip install sentencepiece"
        ) from fault
    factor = charsmap_factor(_charsmap(data))
    if factor > LIMIT:
        raise TokenizerError(f"{shown_path(path)} has rules that make a text {factor:.0f} times longer; those of "
                             f"language models stay below {LIMIT}: fetch it again from where you trust it")
    sentencepiece.set_min_log_level(_QUIET)
    with guarded(f"{shown_path(path)} is not a SentencePiece model"):
        # the library treats an empty file as a model that is not loaded yet
        processor = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
    if processor is None or processor.vocab_size() == 0:
        raise TokenizerError(f"{shown_path(path)} is not a SentencePiece model: it holds no tokens; fetch it again")
    return processor


def _charsmap(data: bytes) -> bytes:
    """The longest ``normalizer_spec.precompiled_charsmap`` (fields 3 and 2) of a model; empty where it has none."""
    specs = [value for field, value in _fields(data) if field == 3]
    return max((value for spec in specs for field, value in _fields(spec) if field == 2), key=len, default=b"")


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of the length-delimited fields of a protobuf message, as far as it can be read."""
    at, end = 0, len(data)
    while at < end:
        if data[at] == 10 and at + 1 < end and data[at + 1] < 128:  # a quarter of a million short tokens
            at += 2 + data[at + 1]
            continue
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        elif tag & 7 == 0:
            at = _varint(data, at)[1]
        else:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[at : at + 10]:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            break
    return value, at


def _added(settings: TokenizerSettings, numbers: Mapping[str, int], pieces: list[bytes]) -> dict[str, int]:
    """Tokens of ``added_tokens_decoder`` by text; those beyond the model are appended to ``pieces``."""
    limit = len(pieces) + len(settings.added)
    for number, token in settings.added.items():
        known = numbers.get(token.content)
        if known is not None and known != number:
            raise settings.misplaced(number, known, FILE)
        if known is None and not len(numbers) <= number < limit:
            raise settings.misplaced(number, None, FILE)
        if known is None:
            pieces += [b""] * (number + 1 - len(pieces))
            pieces[number] = token.content.encode()
    return {token.content: number for number, token in settings.added.items()}


def _dummy_prefix(processor: Any) -> int:
    """How many spaces the model puts before a text."""
    first = processor.encode("a", out_type=str)[:1]
    return int(bool(first) and first[0].startswith(_SPACE))


@hookimpl
def gemma4_tokenizers() -> list[TokenizerBackend]:
    """tokenizer.model, for folders without tokenizer.json."""
    return [
        TokenizerBackend(
            name="sentencepiece", summary="tokenizer.model through the sentencepiece library", load=load,
            matches=lambda context: context.file(FILE) is not None, priority=10,
        )
    ]
