"""tokenizer.json through the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_bytes, shown, shown_path
from gemma4_core.descriptions import Context, StreamDecoder, TokenizerBackend
from gemma4_core.errors import TokenizerError
from gemma4_core.hookspecs import hookimpl
from gemma4_core.text.pieces import PieceTokenizer, checked_text, token_number, unknown_id
from gemma4_core.text.settings import TokenizerSettings, is_control

FILE = "tokenizer.json"
SIZE_LIMIT = 512 << 20
"""Bytes; the released file has 33 million."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class JsonTokenizer(PieceTokenizer):
    """A tokenizer.json whose decoder works token by token: Gemma's, or a byte-level one."""

    def __init__(self, backend: Any, specials: Mapping[str, int], to_bytes: Callable[[str], bytes], strip: int) -> None:
        super().__init__(specials, strip)
        self._backend = backend
        self._to_bytes = to_bytes
        self._vocab_size = _vocab_size(backend)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are recognised unless ``special`` is off, and nothing is added. Raises
        TokenizerError."""
        return _encode(self._backend if special else self._plain, text)

    @cached_property
    def _plain(self) -> Any:
        return _without_special(self._backend, self.special_tokens)

    def _find(self, token: int) -> bytes | None:
        piece = self._backend.id_to_token(token)
        return None if piece is None else self._to_bytes(piece)


class OtherTokenizer:
    """A tokenizer.json with another decoder, which only knows how to decode a whole sequence."""

    has_text = True

    def __init__(self, backend: Any, specials: Mapping[str, int]) -> None:
        self._backend = backend
        self.special_tokens = dict(specials)
        self.vocab_size = _vocab_size(backend)
        self._special = frozenset(self.special_tokens.values())

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are recognised unless ``special`` is off, and nothing is added. Raises
        TokenizerError."""
        return _encode(self._backend if special else self._plain, text)

    @cached_property
    def _plain(self) -> Any:
        return _without_special(self._backend, self.special_tokens)

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids. Raises TokenizerError for an id that no token has."""
        numbers = [token_number(token) for token in ids]
        for token in numbers:
            if not 0 <= token < self.vocab_size or self._backend.id_to_token(token) is None:
                raise unknown_id(token, self.vocab_size)
        kept = [token for token in numbers if not (skip_special and token in self._special)]
        return self._backend.decode(kept, skip_special_tokens=False)

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A fresh incremental decoder."""
        return _WholeStream(self, skip_special)


class _WholeStream:
    """Decodes all ids again with each one: quadratic, but right for any decoder that only appends."""

    def __init__(self, tokenizer: OtherTokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        if not 0 <= token < self._tokenizer.vocab_size:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, self._skip_special)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self._since(text)

    def flush(self) -> str:
        return self._since(self._tokenizer.decode(self._ids, self._skip_special))

    def _since(self, text: str) -> str:
        new, self._given = text[self._given :], max(self._given, len(text))
        return new


def load(context: Context) -> JsonTokenizer | OtherTokenizer:
    """The folder's tokenizer.json with the tokens that tokenizer_config.json adds. Raises TokenizerError."""
    path = context.file(FILE)
    if path is None:
        where = f"{shown_path(context.folder)}: no {FILE}" if context.folder else f"without a folder there is no {FILE}"
        raise TokenizerError(f"{where}; choose --tokenizer raw and give token ids with --prompt-tokens")
    settings = TokenizerSettings.load(path.parent)
    backend = _open(path)
    _add_tokens(backend, settings)
    specials = {
        token.content: number
        for number, token in sorted(backend.get_added_tokens_decoder().items())
        if token.special or is_control(token.content)
    }
    plan = _byte_plan(_decoder(backend))
    return OtherTokenizer(backend, specials) if plan is None else JsonTokenizer(backend, specials, *plan)


def _open(path: Path) -> Any:
    data = read_bytes(path, SIZE_LIMIT, TokenizerError)
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise TokenizerError(f"the tokenizers library does not load ({fault}): pip install tokenizers") from fault
    try:
        backend = Tokenizer.from_str(data.decode("utf-8-sig"))
        backend.no_truncation()
        backend.no_padding()
    except UnicodeDecodeError as fault:
        raise TokenizerError(f"{shown_path(path)} is not UTF-8 text (byte {fault.start}); fetch it again") from fault
    except BaseException as fault:
        raise _refused(fault, f"{shown_path(path)} is not a tokenizer that the tokenizers library reads") from fault
    return backend


def _refused(fault: BaseException, what: str) -> BaseException:
    """A fault of the library as an error; its panics are no Exceptions, real interrupts pass."""
    if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
        return TokenizerError(f"{what}: {shown(str(fault) or type(fault).__name__, 200)}")
    return fault


def _add_tokens(backend: Any, settings: TokenizerSettings) -> None:
    """Tokens of ``added_tokens_decoder``, then those named special that the vocabulary knows."""
    from tokenizers import AddedToken

    for number, token in settings.added.items():
        known = backend.token_to_id(token.content)
        if known is None and backend.get_vocab_size() == number:
            add = backend.add_special_tokens if token.special else backend.add_tokens
            add([AddedToken(token.content, special=token.special, normalized=False)])
            known = backend.token_to_id(token.content)
        if known != number:
            raise settings.misplaced(number, known, FILE)
    special = [token.content for token in settings.added.values() if token.special]
    names = dict.fromkeys([*special, *settings.named.values(), *settings.special])
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names if backend.token_to_id(name) is not None]
    )


def _without_special(backend: Any, specials: Mapping[str, int]) -> Any:
    """A tokenizer over the same vocabulary that takes special tokens in a text for text."""
    from tokenizers import AddedToken, Tokenizer

    plain = Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    # in the order of their ids, because a token that the vocabulary lacks gets the next one
    added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    for special, tokens in groupby(added, lambda token: token.content in specials):
        if special:
            plain.add_special_tokens([AddedToken(token.content, special=True, normalized=False) for token in tokens])
        else:
            plain.add_tokens(list(tokens))
    plain.encode_special_tokens = True
    return plain


def _vocab_size(backend: Any) -> int:
    size: int = backend.get_vocab_size()
    if size and backend.id_to_token(size - 1) is not None:
        return size
    # ids with gaps go further than their number
    return max(backend.get_vocab().values(), default=-1) + 1


def _encode(backend: Any, text: str) -> list[int]:
    checked_text(text)
    try:
        return backend.encode(text, add_special_tokens=False).ids
    except BaseException as fault:
        raise _refused(fault, f"{FILE} cannot encode the text") from fault


def _decoder(backend: Any) -> list[dict[str, Any]]:
    """The steps of the decoder as tokenizer.json writes them (its pickled state is that JSON)."""
    if backend.decoder is None:
        return []
    step = json.loads(backend.decoder.__getstate__())
    return step["decoders"] if step["type"] == "Sequence" else [step]


def _byte_plan(steps: list[dict[str, Any]]) -> tuple[Callable[[str], bytes], int] | None:
    """How a token becomes bytes, and the spaces to strip at the start; None for a decoder that is not per token."""
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _byte_level(), 0
    replacements, fallback, strip = [], False, 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fallback:
                replacements.append((old, new))
            case {"type": "ByteFallback"}:
                fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if steps[-1] is step:
                strip = start
            case _:
                return None
    if not any(step["type"] == "Fuse" for step in steps):
        return None

    def to_bytes(piece: str) -> bytes:
        for old, new in replacements:
            piece = piece.replace(old, new)
        if fallback and _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.encode()

    return to_bytes, strip


def _byte_level() -> Callable[[str], bytes]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for U+0100 and on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}

    def to_bytes(piece: str) -> bytes:
        try:
            return bytes(letters[letter] for letter in piece)
        except KeyError:
            return piece.encode()

    return to_bytes


@hookimpl
def gemma4_tokenizers() -> list[TokenizerBackend]:
    """tokenizer.json, the first choice."""
    return [
        TokenizerBackend(
            name="huggingface", summary="tokenizer.json through the tokenizers library", load=load,
            matches=lambda context: context.file(FILE) is not None, priority=20,
        )
    ]
