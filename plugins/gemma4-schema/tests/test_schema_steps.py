"""A constraint from id to id: ends, thoughts, what is forced, taking back, the cache of grammars and vocabularies."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gemma4_schema import vocabulary as vocabularies
from gemma4_schema.building import build
from gemma4_schema.compiling import MOST_KEPT
from gemma4_schema.vocabulary import vocabulary
from schema_tools import (
    TINY_STOP_IDS,
    allowed,
    answer_context,
    constraint,
    drawn,
    pieces_of,
    text_of,
    tokenizer,
    tools_of,
)

from gemma4_core import InputError
from gemma4_core.contracts import ANSWER_KEY

SPECIFICATIONS: list[dict[str, Any]] = [
    {
        "json_schema": {
            "type": "object",
            "properties": {"name of it": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}},
            "required": ["name of it"],
        }
    },
    {"regex": "(yes|no), [a-z]{3,5}"},
    {"lark": 'start: "a" B ("," B){0,2}\nB: /[0-9]{1,3}/'},
    {"tools": "required"},
    {"tools": "auto"},
]
TOOLS = tools_of({"type": "object", "properties": {"x": {"type": "integer"}}})
CHANNEL, CLOSE = (tokenizer().special_tokens[name] for name in ("<|channel>", "<channel|>"))


def test_an_answer_ends_where_its_form_is_complete_and_nowhere_else() -> None:
    form = constraint({"regex": "ab?"})
    assert not set(TINY_STOP_IDS) & set(allowed(form))
    form.advance(tokenizer().encode("a")[0])
    assert set(TINY_STOP_IDS) < set(allowed(form))
    form.advance(TINY_STOP_IDS[1])  # as drafts do
    assert allowed(form) == sorted(TINY_STOP_IDS)
    form.rollback(1)
    form.advance(tokenizer().encode("b")[0])
    assert allowed(form) == sorted(TINY_STOP_IDS)


def test_other_stop_ids_and_other_sizes_of_the_vocabulary() -> None:
    for size in (300, 505, 512, 513, 600):
        form = constraint({"regex": "[a-z]*"}, vocab_size=size, stop_ids=(7,))
        assert form.mask().shape == (-(-size // 32),) and form.mask().dtype == np.uint32
        assert 7 in allowed(form) and 1 not in allowed(form) and max(allowed(form)) < min(size, 512)


def test_text_holds_no_special_token() -> None:
    special = set(tokenizer().special_tokens.values())
    for specification in ({"regex": "(?s:.*)"}, {"json_schema": {"type": "string"}}, {"lark": "start: /(?s:.*)/"}):
        assert special & set(allowed(constraint(specification))) <= set(TINY_STOP_IDS)


@pytest.mark.parametrize("number", range(len(SPECIFICATIONS)))
def test_what_is_taken_back_was_never_there(number: int) -> None:
    """Masks and forced ids after random drafts are those of a constraint that saw the answer alone."""
    rng = np.random.default_rng(number)
    fields: dict[str, Any] = {"tools": TOOLS, "thinking": "allowed" if number % 2 else "none", "limit": 60}
    for _ in range(4):
        drafted, plain = (constraint(SPECIFICATIONS[number], **fields) for _ in range(2))
        for _ in range(50):
            assert drafted.mask().tolist() == plain.mask().tolist()
            assert list(drafted.forced()) == list(plain.forced())
            count = 0
            while count < int(rng.integers(0, 6)):
                drafted.advance(int(rng.choice(allowed(drafted))))
                count += 1
            if count:
                drafted.rollback(count)
            choice = int(rng.choice(allowed(plain)))
            if choice in TINY_STOP_IDS:
                break
            drafted.advance(choice)
            plain.advance(choice)


def test_forced_ids_are_the_only_ones_allowed() -> None:
    form = constraint(SPECIFICATIONS[0])
    rng, seen = np.random.default_rng(0), 0
    for _ in range(60):
        forced = list(form.forced())
        for token in forced:
            assert allowed(form) == [token]
            form.advance(token)
            seen += 1
        choice = int(rng.choice(allowed(form)))
        if choice in TINY_STOP_IDS:
            break
        form.advance(choice)
    assert seen > 5


@pytest.mark.parametrize("specification", SPECIFICATIONS[:4])
def test_thoughts_come_first_and_end(specification: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    form = constraint(specification, tools=TOOLS, thinking="allowed", limit=400)
    assert CHANNEL in allowed(form)
    form.advance(CHANNEL)
    ids = [CHANNEL, *drawn(form, rng)]
    assert ids.index(CLOSE) < 200  # half of the answer at most
    kinds = [kind for kind, _ in itertools.groupby(piece.kind for piece in pieces_of(ids))]
    assert kinds == ["thinking", "tool_call" if "tools" in specification else "text"]
    alone = constraint(specification, tools=TOOLS)
    for token in ids[ids.index(CLOSE) + 1 :]:
        assert token in allowed(alone)
        alone.advance(token)


def test_an_open_channel_is_closed_within_its_budget() -> None:
    form = constraint({"regex": "x", "thinking_budget": 4}, thinking="open", limit=100)
    ids = drawn(form, np.random.default_rng(6))
    assert 0 <= ids.index(CLOSE) <= 3 and text_of(ids[ids.index(CLOSE) + 1 :]) == "x"
    assert CHANNEL not in allowed(constraint({"regex": "x"}))


def test_nothing_may_end_the_answer() -> None:
    with pytest.raises(InputError, match="nothing may end"):
        constraint({"regex": "x"}, stop_ids=())


def test_a_backend_asked_by_itself_knows_the_usual_ends() -> None:
    form = build(tokenizer(), {"regex": "x"})
    form.advance(tokenizer().encode("x")[0])
    assert set(allowed(form)) == set(TINY_STOP_IDS)


def test_a_tokenizer_without_text_is_refused() -> None:
    raw = SimpleNamespace(has_text=False, vocab_size=0, special_tokens={})
    with pytest.raises(InputError, match="needs a tokenizer"):
        build(raw, {"regex": "x", ANSWER_KEY: answer_context()})  # type: ignore[arg-type]


def test_few_grammars_are_kept() -> None:
    kept = vocabulary(tokenizer()).grammars._kept
    for number in range(MOST_KEPT + 5):
        constraint({"regex": f"number {number}"})
    assert len(kept) == MOST_KEPT
    first = next(reversed(kept.values()))
    constraint({"regex": f"number {MOST_KEPT + 4}"})
    assert next(reversed(kept.values())) is first


class Letters:
    """A tokenizer that only decodes, with an id for each ASCII letter, and a part of a character."""

    special_tokens = {"<eos>": 0}  # noqa: RUF012
    vocab_size = 28

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        return "".join("\N{REPLACEMENT CHARACTER}" if token == 27 else chr(token + 96) for token in ids)


def test_a_tokenizer_that_knows_no_bytes() -> None:
    form = build(Letters(), {"regex": "[a-c]|é"})  # type: ignore[arg-type]
    assert allowed(form) == [1, 2, 3]


def test_bytes_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "cache_dir", lambda: tmp_path)
    ours = tokenizer()
    found = vocabularies._all_bytes(ours)
    [file] = (tmp_path / "vocabularies").iterdir()
    monkeypatch.setattr(type(ours), "piece", lambda self, token: pytest.fail("asked again"))
    assert vocabularies._all_bytes(ours) == found and len(found) == ours.vocab_size
    monkeypatch.undo()
    monkeypatch.setattr(vocabularies, "cache_dir", lambda: tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert vocabularies._all_bytes(ours) == found and file.read_bytes() != data
    monkeypatch.setattr(vocabularies, "version", lambda name: "0.0")
    assert vocabularies._all_bytes(ours) == found
    assert len(list((tmp_path / "vocabularies").iterdir())) == 2


def test_no_cache_folder_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise OSError("read-only")

    monkeypatch.setattr(vocabularies, "cache_dir", refuse)
    assert len(vocabularies._all_bytes(tokenizer())) == tokenizer().vocab_size
