"""llguidance's tokenizer of one of ours: the bytes of every id, in a trie.

The bytes are kept on disk, because asking for each of a quarter of a million takes seconds; the trie is made of them
once in a process.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gemma4_core import InputError, TokenizerError
from gemma4_core.checkpoint import atomic_file
from gemma4_core.contracts import ByteTokenizer, Tokenizer
from gemma4_core.devices import cache_dir
from gemma4_schema.compiling import Grammars

MOST_FILES = 16
"""Vocabularies kept on disk; the oldest are deleted first."""
LAYOUT = 1
"""Of the files; another one makes them anew."""
INSTALL = "pip install 'llguidance>=1.9,<2'"


class Vocabulary:
    """What constraints need of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = dict(tokenizer.special_tokens)
        self.size = tokenizer.vocab_size
        self.grammars = Grammars(_trie(tokenizer))

    def text(self, size: int) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]`` for a model of so many ids: those that are text."""
        return bits(set(range(min(size, self.size))).difference(self.special.values()), size)

    def mask(self, matcher: Any, size: int) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]`` for a model of so many ids: what a matcher allows."""
        known, words = min(size, self.size), -(-size // 32)
        found = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: -(-known // 32)]
        if known % 32:  # behind the last id stands llguidance's own end
            found = found.copy()
            found[-1] &= np.uint32((1 << known % 32) - 1)
        return found if len(found) == words else np.concatenate([found, np.zeros(words - len(found), np.uint32)])


def bits(ids: Iterable[int], size: int) -> np.ndarray:
    """uint32 ``[ceil(V / 32)]`` with the bits of these ids."""
    found = np.zeros(-(-size // 32) * 32, np.uint8)
    found[np.fromiter(ids, np.int64)] = 1
    return np.packbits(found, bitorder="little").view(np.uint32)


_made: weakref.WeakKeyDictionary[Any, Vocabulary] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer, made once. Raises InputError for one without text, and without llguidance."""
    if not getattr(tokenizer, "has_text", True):
        raise InputError("constraint: needs a tokenizer with text, and this model is opened without one")
    with _making:
        found = _made.get(tokenizer)
        if found is None:
            found = _made[tokenizer] = Vocabulary(tokenizer)
        return found


def library() -> Any:
    """llguidance. Raises InputError where it does not load."""
    try:
        import llguidance
    except ImportError as error:
        raise InputError(f"constraint: the package llguidance does not load ({error}): {INSTALL}") from error
    return llguidance


def _trie(tokenizer: Tokenizer) -> Any:
    size, special = tokenizer.vocab_size, sorted(tokenizer.special_tokens.values())
    ours = weakref.ref(tokenizer)  # what is made of a tokenizer goes when it does

    class Bytes:
        # llguidance has an end of its own behind the vocabulary: what ends an answer is known when it is asked for
        eos_token_id = size
        bos_token_id = None
        tokens: ClassVar[list[bytes]] = [*_all_bytes(tokenizer), b"<end>"]
        special_token_ids: ClassVar[list[int]] = [*special, size]

        def __call__(self, text: str | bytes) -> list[int]:
            found, given = ours(), text if isinstance(text, str) else text.decode()
            return [] if found is None else found.encode(given, special=False)

    llguidance = library()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=size + 1)


# --------------------------------------------------------------------------------------------------- bytes of ids


def _all_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every id; empty for one that can never be written."""
    size = tokenizer.vocab_size
    if not isinstance(tokenizer, ByteTokenizer):
        return [_decoded(tokenizer, token) for token in range(size)]
    path = _file(tokenizer)
    found = _read(path, size) if path is not None else None
    if found is None:
        found = [tokenizer.piece(token) or b"" for token in range(size)]
        if path is not None:
            _write(path, found)
    return found


def _decoded(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of an id by its text: nothing for a part of a character."""
    try:
        text = tokenizer.decode([token])
    except TokenizerError:
        return b""
    return b"" if "\N{REPLACEMENT CHARACTER}" in text else text.encode()


def _file(tokenizer: ByteTokenizer) -> Path | None:
    """The file for this tokenizer's bytes in the cache folder; None where there can be none."""
    name = hashlib.sha256(repr((LAYOUT, version("llguidance"), tokenizer.digest())).encode()).hexdigest()[:32]
    with suppress(Exception):  # no folder can be made: everything works without it
        folder = cache_dir() / "vocabularies"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.bytes"
    return None


def _read(path: Path, size: int) -> list[bytes] | None:
    """What ``_write`` wrote; None where it did not, or the file is damaged."""
    with suppress(OSError, ValueError):
        data = path.read_bytes()
        digest, content = data[:32], memoryview(data)[32:]
        if hashlib.sha256(content).digest() != digest:
            return None
        lengths = np.frombuffer(content[: 4 * size], np.uint32)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        joined = bytes(content[4 * size :])
        if len(lengths) != size or ends[-1] != len(joined):
            return None
        return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return None


def _write(path: Path, found: list[bytes]) -> None:
    content = np.array([len(one) for one in found], np.uint32).tobytes() + b"".join(found)
    with suppress(Exception):  # a full disk: everything works without being stored
        with atomic_file(path) as file:
            file.write(hashlib.sha256(content).digest() + content)
        files = sorted(path.parent.glob("*.bytes"), key=lambda one: one.stat().st_mtime)
        for old in files[:-MOST_FILES]:
            old.unlink(missing_ok=True)

