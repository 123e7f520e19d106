"""An answer's ids split into text, thinking and tool calls: nothing lost, no special token in any text."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import pytest

from gemma4_core.contracts import Context
from gemma4_core.text import AnswerSplitter, ControlTokens, Piece
from gemma4_core.text.template import ChatTemplate
from gemma4_core.text.tiny import copy_tiny_tokenizer
from gemma4_plugins.tokenizers import huggingface

QUOTE = '<|"|>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    copy_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return huggingface.load(Context(folder=folder))


def split(tokenizer, answer: str | list[int], prompt: str = "", **options: Any) -> list[Piece]:
    """All pieces, neighbours of a kind joined."""
    ids = tokenizer.encode(answer) if isinstance(answer, str) else answer
    splitter = AnswerSplitter(tokenizer, tokenizer.encode(prompt), **options)
    joined: list[Piece] = []
    for piece in [piece for token in ids for piece in splitter.add(token)] + splitter.finish():
        assert piece.text
        if joined and piece.kind == joined[-1].kind != "tool_call":
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    assert splitter.finish() == []
    return joined


def shown(pieces: list[Piece]) -> list[tuple[str, Any]]:
    return [(piece.kind, piece.text if piece.tool_call is None else piece.tool_call) for piece in pieces]


def call(name: str, **arguments: Any) -> tuple[str, Any]:
    return ("tool_call", {"name": name, "arguments": arguments})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", []),
        ("Hello there", [("text", "Hello there")]),
        ("<|channel>thought\nHm, 2.\n<channel|>Two.", [("thinking", "Hm, 2.\n"), ("text", "Two.")]),
        ("<|channel>thought\n<channel|>Two.", [("text", "Two.")]),
        ("<|channel><channel|>Two.", [("text", "Two.")]),
        ("<|channel>thought<channel|>Two.", [("text", "Two.")]),
        ("<|channel>tho<channel|>Two.", [("thinking", "tho"), ("text", "Two.")]),
        ("<|channel>thoughtful\nx<channel|>", [("thinking", "thoughtful\nx")]),
        ("<|channel>plan\nx<channel|>y", [("thinking", "plan\nx"), ("text", "y")]),
        ("<|channel>thought\nnever closed", [("thinking", "never closed")]),
        ("<|channel>thought", []),
        ("a<|channel>thought\nb<channel|>c<|channel>d<channel|>e",
         [("text", "a"), ("thinking", "b"), ("text", "c"), ("thinking", "d"), ("text", "e")]),
        ("a<channel|>b", [("text", "ab")]),
        ("thought\nis a word", [("text", "thought\nis a word")]),
        ("<|tool_call>call:stop{}<tool_call|>", [call("stop")]),
        (f"Let me see.<|tool_call>call:get{{city:{QUOTE}Oslo{QUOTE}}}<tool_call|><|tool_response>",
         [("text", "Let me see."), call("get", city="Oslo")]),
        ("<|tool_call>call:a{}<tool_call|><|tool_call>call:b{x:1}<tool_call|>", [call("a"), call("b", x=1)]),
        ("<|channel>thought\nx<|tool_call>call:a{}<tool_call|>y<channel|>z",
         [("thinking", "x"), call("a"), ("thinking", "y"), ("text", "z")]),
        ("<|tool_call>call:a{x:<tool_call|>after", [("text", "call:a{x:after")]),
        ("<|tool_call>no call<tool_call|>", [("text", "no call")]),
        (f"<|tool_call>call:a{{x:{QUOTE}open}}<tool_call|>", [("text", 'call:a{x:"open}')]),
        (f"<|tool_call>call:a{{x:{QUOTE}cut", [("text", 'call:a{x:"cut')]),
        ("<|tool_call>", []),
        ("<|tool_call><tool_call|>", []),
        ("<tool_call|>x", [("text", "x")]),
        ("<|tool_call>call:a{x:1<|tool_call>call:b{}<tool_call|>", [("text", "call:a{x:1"), call("b")]),
        ("<|tool_call>call:a{x:1<turn|>", [("text", "call:a{x:1")]),
        ("<|tool_call>call:a{x:1<|channel>thought\nhm<channel|>", [("text", "call:a{x:1"), ("thinking", "hm")]),
        (f"say {QUOTE}hi{QUOTE}<turn|><eos>", [("text", "say hi")]),
    ],
)
def test_answers(tokenizer, answer: str, expected: list):
    assert shown(split(tokenizer, answer)) == expected


def test_pieces_come_with_the_token_that_completes_them(tokenizer):
    splitter = AnswerSplitter(tokenizer)
    ids = tokenizer.encode("<|channel>thought\nqZ<channel|>c")
    given = [(tokenizer.decode([token]), splitter.add(token)) for token in ids]
    assert [(token, pieces) for token, pieces in given if pieces] == [
        ("q", [Piece("thinking", "q")]), ("Z", [Piece("thinking", "Z")]), ("c", [Piece("text", "c")])]


def test_a_call_is_shown_as_json(tokenizer):
    [piece] = split(tokenizer, f"<|tool_call>call:get{{city:{QUOTE}Tromsø{QUOTE},n:[1,null]}}<tool_call|>")
    assert piece.text == '{"name": "get", "arguments": {"city": "Tromsø", "n": [1, null]}}'


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("<|turn>model\n", "text"),
        ("<|turn>model\n<|channel>thought\n", "thinking"),
        ("<|turn>model\n<|channel>thought\n<channel|>", "text"),
        ("<tool_response|><|channel>thought\nI think ", "thinking"),
        ("<|channel>thought\nnever closed<turn|>\n<|turn>user\nx<turn|>\n<|turn>model\n", "text"),
        ("<|channel>", "thinking"),
    ],
)
def test_the_prompt_may_end_inside_the_thought_channel(tokenizer, prompt: str, kind: str):
    assert shown(split(tokenizer, "so<channel|>Yes", prompt)) == (
        [("thinking", "so"), ("text", "Yes")] if kind == "thinking" else [("text", "soYes")])


def test_a_channel_opened_by_the_prompt_may_get_its_name_from_the_answer(tokenizer):
    assert shown(split(tokenizer, "thought\nso<channel|>Yes", "<|channel>")) == [("thinking", "so"), ("text", "Yes")]


def test_the_start_can_be_said_without_a_prompt(tokenizer):
    assert shown(split(tokenizer, "so<channel|>Yes", start_in_thinking=True)) == [("thinking", "so"), ("text", "Yes")]


def test_a_cut_character_becomes_the_replacement_character_where_it_was(tokenizer):
    lead = 24 + 0xC3
    channel = tokenizer.special_tokens["<|channel>"]
    ids = [lead, channel, *tokenizer.encode("thought\nx"), lead]
    assert shown(split(tokenizer, ids)) == [("text", "\ufffd"), ("thinking", "x\ufffd")]


def test_ids_beyond_the_tokenizer_do_not_end_an_answer(tokenizer):
    assert shown(split(tokenizer, [*tokenizer.encode("a"), 5000, *tokenizer.encode("b")])) == [("text", "a\ufffdb")]


def test_a_tokenizer_without_control_tokens_gives_text(tokenizer):
    pieces = split(tokenizer, "<|tool_call>call:a{}<tool_call|>x", control=ControlTokens())
    assert shown(pieces) == [("text", "call:a{}x")]


def test_nothing_is_lost_and_no_special_token_shows_in_random_answers(tokenizer):
    """Without whole calls, the texts joined are the decoded ids without special tokens (channel names apart)."""
    draw = random.Random(10)
    special = list(tokenizer.special_tokens.values())
    quote, close = tokenizer.special_tokens[QUOTE], tokenizer.special_tokens["<tool_call|>"]
    for _ in range(400):
        ids = [draw.choice(special) if draw.random() < 0.3 else draw.randrange(280, 512)
               for _ in range(draw.randrange(60))]
        pieces = split(tokenizer, [token for token in ids if token != quote])
        plain = tokenizer.decode([token for token in ids if token != quote], skip_special=True)
        assert not any(piece.kind == "tool_call" for piece in pieces)
        assert "".join(piece.text for piece in pieces) == plain
        texts = "".join(piece.text for piece in split(tokenizer, ids))
        assert texts.replace('"', "") == plain.replace('"', "")
        assert not any(token in texts for token in tokenizer.special_tokens)
        assert close not in tokenizer.encode(texts)


def random_value(draw: random.Random, depth: int) -> Any:
    letters = string.ascii_letters + " \n\t{}[]:,'\"\\<|>éß漢\U0001f999\0"
    kind = draw.randrange(8 if depth else 5)
    match kind:
        case 0:
            return draw.choice([True, False, None])
        case 1:
            return draw.choice([0, -1, 10**30, draw.randrange(10**6)])
        case 2:
            return draw.choice([0.5, -1e-9, 1e300, draw.random()])
        case 3 | 4:
            return "".join(draw.choice(letters) for _ in range(draw.randrange(12)))
        case 5:
            return [random_value(draw, depth - 1) for _ in range(draw.randrange(4))]
        case _:
            return random_map(draw, depth - 1)


def random_map(draw: random.Random, depth: int) -> dict[str, Any]:
    keys = ["a", "b_2", "Camel", "x-y", "key.with.dots", "éé", "true", "7"]
    return {draw.choice(keys): random_value(draw, depth) for _ in range(draw.randrange(4))}


def test_calls_that_the_template_writes_come_back_equal(folder: Path, tokenizer):
    draw, template = random.Random(11), ChatTemplate.load(folder)
    head = template.render([{"role": "user", "content": "x"}])
    for _ in range(200):
        arguments = random_map(draw, 3)
        message = {"role": "assistant", "tool_calls": [{"function": {"name": "f.g-h:i", "arguments": arguments}}]}
        text = template.render([{"role": "user", "content": "x"}, message])
        pieces = split(tokenizer, text.removeprefix(head))
        assert shown(pieces) == [call("f.g-h:i", **arguments)]
        assert [type(value) for value in pieces[0].tool_call["arguments"].values()] == [
            type(value) for _, value in sorted(arguments.items(), key=lambda item: item[0].lower())]


def test_random_damage_to_calls_is_a_call_or_text_never_lost(tokenizer):
    draw = random.Random(12)
    whole = tokenizer.encode(f'call:f{{a:{QUOTE}x, y{QUOTE},b:[1,{{c:true}}],d:"q",e:\'r\'}}')
    begin, end = tokenizer.special_tokens["<|tool_call>"], tokenizer.special_tokens["<tool_call|>"]
    quote = tokenizer.special_tokens[QUOTE]
    calls = 0
    for _ in range(400):
        ids = list(whole)
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(ids))
            ids[at : at + draw.randrange(2)] = [draw.choice([quote, *whole])] * draw.randrange(2)
        pieces = split(tokenizer, [begin, *ids, end])
        if pieces[0].kind == "tool_call":
            calls += 1
            assert len(pieces) == 1
        else:
            expected = "".join('"' if token == quote else tokenizer.decode([token]) for token in ids)
            assert shown(pieces) == [("text", expected)]
    assert 50 < calls < 400
