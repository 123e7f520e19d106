"""tokenizer.json through the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_bytes
from gemma4_core.contracts import Context, SideFile, StreamDecoder, TokenizerBackend
from gemma4_core.errors import TokenizerError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.hookspecs import hookimpl
from gemma4_core.text.byte_tokens import PieceTokenizer, checked_text, token_number, unknown_id
from gemma4_core.text.settings import TokenizerSettings, is_control
from gemma4_plugins.tokenizers.growth import check_growth, steps
from gemma4_plugins.tokenizers.guard import guarded

FILE = "tokenizer.json"
SIZE_LIMIT, ITEM_LIMIT = 256 << 20, 8_000_000
"""Bytes and commas; the released file has 33 and 2 million."""
ADDED_LIMIT = 8 << 20
"""Bytes of all added tokens together; the library makes a state for each byte to find the tokens in a text."""
VOCAB_LIMIT = 1 << 24
"""Ids; the largest vocabularies have a million."""
AFFIX_LIMIT = 64
"""Characters that a model may add to every character of a text to look it up."""
SECTIONS = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
"""Parts of the file besides the model."""
CALM = frozenset({
    "Replace", "Prepend", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "BertNormalizer", "Split",
    "ByteLevel", "Metaspace", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "BertPreTokenizer",
})
"""Steps of encoding that never panic unless their pattern is a regular expression."""
_KEY = re.compile(r'\s*\{\s*"(\w+)"\s*:\s*')
_NEXT_KEY = re.compile(r'\s*,\s*"(\w+)"\s*:\s*')
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Library:
    """A tokenizer of the library; every call to it is guarded."""

    def __init__(self, backend: Any, path: Path | SideFile, silent: bool) -> None:
        self.backend, self._path, self._where, self._silent = backend, path, shown_path(path), silent
        with guarded(f"{self._where} cannot be used"):
            self.vocab_size = self._count()
            model = backend.model
            names = ("continuing_subword_prefix", "end_of_word_suffix")
            long = [name for name in names if len(getattr(model, name, None) or "") > AFFIX_LIMIT]
        if long:
            raise TokenizerError(f"{self._where}: {long[0]} has more than {AFFIX_LIMIT} characters; is it damaged?")
        if self.vocab_size > VOCAB_LIMIT:
            raise TokenizerError(f"{self._where} has a token with the id {self.vocab_size - 1}; ids must be below "
                                 f"{VOCAB_LIMIT}: the file is damaged")

    def _count(self) -> int:
        size: int = self.backend.get_vocab_size()
        if size and self.backend.id_to_token(size - 1) is not None:
            return size
        # ids with gaps exceed their count
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def token(self, number: int) -> str | None:
        """The text of an id below 2 ** 32, or None."""
        with guarded(f"{self._where} cannot look up the id {number}", silent=False):
            token: str | None = self.backend.id_to_token(number)
        return token

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError."""
        checked_text(text)
        with guarded(f"{self._where} cannot encode the text", self._silent):
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids. Raises TokenizerError."""
        with guarded(f"{self._where} cannot decode the ids"):
            text: str = self.backend.decode(ids, skip_special_tokens=False)
        return text

    def added(self) -> bytes:
        """The tokens beside the model's vocabulary, those of other files included."""
        with guarded(f"{self._where} cannot be used"):
            tokens = sorted(self.backend.get_added_tokens_decoder().items())
        return repr([(number, token.content, token.special, token.normalized) for number, token in tokens]).encode()

    def without_special(self, specials: Mapping[str, int]) -> Library:
        """A tokenizer over the same vocabulary that treats special tokens in a text as text."""
        from tokenizers import AddedToken, Tokenizer

        with guarded(f"{self._where} cannot be used"):
            plain = Tokenizer(self.backend.model)
            plain.normalizer, plain.pre_tokenizer = self.backend.normalizer, self.backend.pre_tokenizer
            # in the order of their ids, because a token that the vocabulary lacks gets the next one
            added = [token for _, token in sorted(self.backend.get_added_tokens_decoder().items())]
            for special, tokens in groupby(added, lambda token: token.content in specials):
                if special:
                    plain.add_special_tokens(
                        [AddedToken(token.content, special=True, normalized=False) for token in tokens]
                    )
                else:
                    plain.add_tokens(list(tokens))
            plain.encode_special_tokens = True
        return Library(plain, self._path, self._silent)


class JsonTokenizer(PieceTokenizer):
    """A tokenizer.json whose decoder works token by token: Gemma's, or a byte-level one."""

    def __init__(
        self, library: Library, specials: Mapping[str, int], content: bytes, to_bytes: Callable[[str], bytes],
        strip: int,
    ) -> None:
        super().__init__(specials, strip)
        self._library, self._file_hash = library, content
        self._to_bytes = to_bytes

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._library.vocab_size

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are recognised unless ``special`` is off, and nothing is added. Raises
        TokenizerError."""
        return (self._library if special else self._plain).encode(text)

    @cached_property
    def _plain(self) -> Library:
        return self._library.without_special(self.special_tokens)

    def _content(self) -> bytes:
        return self._file_hash + self._library.added()

    def _find(self, token: int) -> bytes | None:
        piece = self._library.token(token)
        return None if piece is None else self._to_bytes(piece)


class OtherTokenizer:
    """A tokenizer.json with another decoder, which can only decode a whole sequence."""

    has_text = True

    def __init__(self, library: Library, specials: Mapping[str, int]) -> None:
        self._library = library
        self.special_tokens = dict(specials)
        self.vocab_size = library.vocab_size
        self._special = frozenset(self.special_tokens.values())

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; special tokens in it are recognised unless ``special`` is off, and nothing is added. Raises
        TokenizerError."""
        return (self._library if special else self._plain).encode(text)

    @cached_property
    def _plain(self) -> Library:
        return self._library.without_special(self.special_tokens)

    def knows(self, token: int) -> bool:
        """Whether a token has this id."""
        return 0 <= token < self.vocab_size and self._library.token(token) is not None

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids. Raises TokenizerError for an id that no token has."""
        numbers = [token_number(token) for token in ids]
        for token in numbers:
            if not self.knows(token):
                raise unknown_id(token, self.vocab_size)
        return self._library.decode([token for token in numbers if not (skip_special and token in self._special)])

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
        if not self._tokenizer.knows(token):
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
        where = f"{shown_path(context.path)}: no {FILE}" if context.path else f"without a folder there is no {FILE}"
        raise TokenizerError(f"{where}; choose --tokenizer raw and give token ids with --prompt-tokens (in Python "
                             "prompt_tokens=)")
    settings = TokenizerSettings.load(context)
    backend, silent, content = _open(path)
    with guarded(f"{shown_path(path)} does not take the tokens of {shown_path(settings.path)}"):
        _add_tokens(backend, settings)
        specials = {
            token.content: number
            for number, token in sorted(backend.get_added_tokens_decoder().items())
            if token.special or is_control(token.content)
        }
        plan = _byte_plan(_decoder(backend))
    library = Library(backend, path, silent)
    return OtherTokenizer(library, specials) if plan is None else JsonTokenizer(library, specials, content, *plan)


def _open(path: Path | SideFile) -> tuple[Any, bool, bytes]:
    """A tokenizer of the library, whether encoding may make it panic, and the file's SHA-256. Raises TokenizerError."""
    data, where = read_bytes(path, SIZE_LIMIT, TokenizerError), shown_path(path)
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise TokenizerError(f"the tokenizers library does not load ({fault}): pip install tokenizers") from fault
    if data.count(b",") > ITEM_LIMIT:
        raise TokenizerError(f"{where} holds more than {ITEM_LIMIT} items, which no tokenizer does; fetch it again")
    try:
        text = data.decode("utf-8-sig").rstrip()
        parts = _sections(text)
    except UnicodeDecodeError as fault:
        raise TokenizerError(f"{where} is not UTF-8 text (byte {fault.start}); fetch it again") from fault
    except (ValueError, RecursionError) as fault:
        raise TokenizerError(f"{where} is not a tokenizer: {shown(str(fault), 200)}; fetch it again") from fault
    growth = {name: check_growth(parts.get(name), f"{where}: {name}") for name in SECTIONS[1:]}
    added = parts.get("added_tokens")
    contents = [str(token.get("content")) for token in added if isinstance(token, dict)] if added else []
    if sum(map(len, contents)) * growth["normalizer"] > ADDED_LIMIT:
        raise TokenizerError(f"{where}: added_tokens take more than {ADDED_LIMIT >> 20} MiB; is this the right file?")
    # of several parts with one name the library takes the last: these, which were checked. A prompt is never truncated,
    # padded or wrapped in other tokens.
    settled = parts | dict.fromkeys(("truncation", "padding", "post_processor"))
    with guarded(f"{where} is not a tokenizer that the tokenizers library reads"):
        backend = Tokenizer.from_str(f"{text[:-1]},{json.dumps(settled)[1:]}")
    encoding = [step for name in ("normalizer", "pre_tokenizer") for step in steps(parts.get(name))]
    calm = all(str(step.get("type")) in CALM and "Regex" not in (step.get("pattern") or ()) for step in encoding)
    return backend, not calm, hashlib.sha256(data).digest()


def _sections(text: str) -> dict[str, Any]:
    """The parts of a tokenizer.json besides its model, which takes a second to read and comes last. Raises ValueError,
    RecursionError."""
    read, parts = json.JSONDecoder().raw_decode, {}
    key = _KEY.match(text)
    while key and key[1] != "model":
        parts[key[1]], at = read(text, key.end())
        key = _NEXT_KEY.match(text, at)
    if not parts.keys() >= set(SECTIONS):
        parts = json.loads(text)
    if not isinstance(parts, dict) or not isinstance(parts.get("added_tokens") or [], list):
        raise ValueError("it must hold a JSON object, and a list of added_tokens")
    return {name: parts[name] for name in SECTIONS if name in parts}


def _add_tokens(backend: Any, settings: TokenizerSettings) -> None:
    """Tokens of ``added_tokens_decoder``, then those named special that the vocabulary knows."""
    from tokenizers import AddedToken

    new: dict[str, AddedToken] = {}
    size = backend.get_vocab_size()
    for number, token in settings.added.items():
        known = backend.token_to_id(token.content)
        if known is None and token.content and token.content not in new and size + len(new) == number:
            new[token.content] = AddedToken(token.content, special=token.special, normalized=False)
        elif known != number:
            raise settings.misplaced(number, known, FILE)
    backend.add_tokens(list(new.values()))  # all at once: each call rebuilds the search for all of them
    for number, token in settings.added.items():
        known = backend.token_to_id(token.content)
        if known != number:
            raise settings.misplaced(number, known, FILE)
    special = [token.content for token in settings.added.values() if token.special]
    names = dict.fromkeys([*special, *settings.named.values(), *settings.special])
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names if backend.token_to_id(name) is not None]
    )


def _decoder(backend: Any) -> list[dict[str, Any]]:
    """The steps of the decoder as tokenizer.json writes them (its pickled state is that JSON)."""
    return [] if backend.decoder is None else list(steps(json.loads(backend.decoder.__getstate__())))


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
