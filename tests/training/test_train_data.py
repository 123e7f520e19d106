"""Lines of data: what they become, what of them is learnt, and what is refused with file and line."""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemma4_core import Gemma4Error, GemmaMultimodalProcessor
from gemma4_core.config import preset_dict
from gemma4_core.formatting import shown_path
from gemma4_core.model.ids import padded_length
from gemma4_core.text.template import ChatTemplate
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE, copy_tiny_tokenizer
from gemma4_core.training.batch import IGNORED
from gemma4_core.training.data import (
    Batches,
    Encoding,
    Example,
    modalities_of,
    read_examples,
    read_records,
)
from gemma4_core.training.data.turns import turns_of

EOS, BOS, TURN_END = 1, 2, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without weights: all that a processor needs."""
    folder = tmp_path_factory.mktemp("tokens")
    config = preset_dict("tiny-e2b")
    config["text_config"] |= {**TINY_TEXT_IDS, "vocab_size": TINY_VOCAB_SIZE, "vocab_size_per_layer_input": 512}
    config |= {**TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 70}}))
    copy_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> GemmaMultimodalProcessor:
    return GemmaMultimodalProcessor.from_pretrained(folder)


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def examples(processor: Any, tmp_path: Path, *lines: Any, **encoding: Any) -> Sequence[Example]:
    return read_examples(written(tmp_path / "d.jsonl", *lines), processor, Encoding(**encoding)).items


def learnt_text(processor: Any, item: Example) -> str:
    """What of an example is learnt."""
    return processor.tokenizer.decode([int(token) for token in item.labels if token != IGNORED])


def said(*turns: str) -> dict[str, Any]:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


# ---------------------------------------------------------------------------------------------------- masks


def test_only_the_assistants_turns_and_their_ends_are_learnt(processor: Any, tmp_path: Path) -> None:
    [item] = examples(processor, tmp_path, said("Hi.", "Yes.", "Why?", "No."))
    encode = processor.tokenizer.encode
    pieces = [  # the template's text, and whether it is learnt
        ([BOS], False), (encode("<|turn>user\nHi.<turn|>\n<|turn>model\n"), False),
        (encode("Yes."), True), ([TURN_END], True), (encode("\n<|turn>user\nWhy?<turn|>\n<|turn>model\n"), False),
        (encode("No."), True), ([TURN_END], True), (encode("\n"), False),
    ]
    assert item.ids.tolist() == [token for ids, _ in pieces for token in ids]
    expected = [token if learnt else IGNORED for ids, learnt in pieces for token in ids]
    assert item.labels.tolist() == expected and expected.count(TURN_END) == 2
    assert item.where == f"{shown_path(tmp_path / 'd.jsonl')}:1"


def test_prompt_and_completion_are_a_conversation_or_raw(processor: Any, tmp_path: Path) -> None:
    line = {"prompt": "Hi.", "completion": "Yes."}
    [templated] = examples(processor, tmp_path, line)
    [same] = examples(processor, tmp_path, said("Hi.", "Yes."))
    assert templated.ids.tolist() == same.ids.tolist() and templated.labels.tolist() == same.labels.tolist()
    [raw] = examples(processor, tmp_path, line, raw=True)
    encode = processor.tokenizer.encode
    assert raw.ids.tolist() == [BOS, *encode("Hi."), *encode("Yes."), EOS]
    assert raw.labels.tolist() == [IGNORED] * (1 + len(encode("Hi."))) + [*encode("Yes."), EOS]


def test_text_is_learnt_whole_and_ends(processor: Any, tmp_path: Path) -> None:
    one, two = examples(processor, tmp_path, {"text": "Yes."}, {"text": "Yes.<turn|>"})
    encode = processor.tokenizer.encode
    assert one.ids.tolist() == [BOS, *encode("Yes."), EOS] and one.labels.tolist() == [IGNORED, *encode("Yes."), EOS]
    assert two.ids.tolist() == [BOS, *encode("Yes."), TURN_END]
    [all_of_it] = examples(processor, tmp_path, said("Hi.", "Yes."), mask_prompt=False)
    assert all_of_it.labels.tolist() == [IGNORED, *all_of_it.ids.tolist()[1:]]


def test_tool_calls_are_learnt_and_results_are_not(processor: Any, tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seven"}, {"role": "assistant", "content": "It is 7."},
    ]
    [item] = examples(processor, tmp_path, {"messages": messages})
    assert learnt_text(processor, item) == "<|tool_call>call:add{a:1}<tool_call|><|tool_response>It is 7.<turn|>"


def test_a_template_without_marks_serves_a_last_answer(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    (bare / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    processor = GemmaMultimodalProcessor.from_pretrained(bare)
    [item] = examples(processor, tmp_path, said("Hi. ", "Yes."))
    assert learnt_text(processor, item) == "Yes."
    [item] = examples(processor, tmp_path, said("Hi. ", "Yes.", "Why? ", "No.", "Go on."))
    assert learnt_text(processor, item) == "Yes.No."
    repeats = "{% for m in messages %}{{ messages[0].content }}|{{ m.content }}|{% endfor %}"
    assert turns_of(ChatTemplate({"default": repeats}, bare, {}), processor.tokenizer.special_tokens) is None


# ---------------------------------------------------------------------------------------------------- media


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((64, 96, 3), 128, np.uint8)).save(tmp_path / "in/red.png")
    with wave.open(str(tmp_path / "in/beep.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes((np.sin(np.arange(4000) * 0.2) * 9000).astype("<i2").tobytes())
    return tmp_path


def test_media_are_found_beside_the_file(processor: Any, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"type": "image", "path": "in/red.png"}, {"type": "text", "text": "And?"},
             {"type": "audio", "audio": "in/beep.wav"}]
    lines = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red, beep."}]},
        {"prompt": "What is <|image|>?", "completion": "Red.", "images": ["in/red.png"]},
        {"prompt": "What is it?", "completion": "Red.", "image": "in/red.png"},
        {"text": "<|audio|> is a beep", "audio": "in/beep.wav"},
    ]
    monkeypatch.chdir(Path("/"))
    path = written(media / "d.jsonl", *lines)
    assert set(modalities_of(read_records(path), processor.specs)) == {"vision", "audio"}
    read = read_examples(path, processor, Encoding())
    first, written_out, placed, heard = read.items
    assert set(first.sources) == {"vision", "audio"} and written_out.ids.tolist() != placed.ids.tolist()
    soft = [TINY_MEDIA_IDS["image_token_id"], TINY_MEDIA_IDS["audio_token_id"]]
    for item in read.items:
        at = np.isin(item.ids, soft)
        assert at.any() and (item.labels[at] == IGNORED).all()
    assert heard.labels[-1] == EOS
    batch = Batches(read, processor, batch_size=4).make(((0,), (1,), (2,), (3,)))
    assert batch.pixel_values.shape[0] == 3 and batch.input_features.shape[0] == 2
    assert len({item.ids.tobytes() for item in read.items}) == 4
    with pytest.raises(Gemma4Error, match=r"d\.jsonl:1: has media"):
        Batches(read, processor, pack=True)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        ({"conversations": []}, "conversations"),
        ({"text": "x", "messages": []}, "both messages and text"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant message"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "usher", "content": "x"}, {"role": "assistant", "content": "y"}]}, "usher"),
        ({"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "y"}]}, "int"),
        ({"prompt": "x"}, "completion must be text"),
        ({"prompt": "x", "completion": " "}, "completion is empty"),
        ({"text": ["x"]}, "text must be text"),
        ({"prompt": "x", "completion": "y", "images": ["in/absent.png"]}, "in/absent.png"),
        ({"prompt": "x <|image|>", "completion": "y", "images": ["in/red.png"] * 2}, "1 <|image|> placeholder but 2"),
        ({"prompt": "x", "completion": "y", "images": ["-"]}, "'-'"),
        ({"prompt": "x", "completion": "y", "images": ["http://example.invalid/a.png"]}, "--allow-urls"),
    ],
)
def test_a_faulty_line_is_named(processor: Any, media: Path, line: Any, says: str) -> None:
    path = written(media / "bad.jsonl", {"text": "fine"}, "", line, {"text": "fine"})
    with pytest.raises(Gemma4Error) as caught:
        read_examples(path, processor, Encoding())
    message = str(caught.value)
    assert f"{shown_path(path)}:3: " in message and says in message and "\n" not in message and len(message) < 480


def test_several_faulty_lines_are_counted_and_bytes_are_no_text(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "fine"}\n{"text": "\xff"}\n{\n')
    with pytest.raises(Gemma4Error, match=r"d\.jsonl:2: not UTF-8 text .*; and 1 more faulty line"):
        read_records(path)
    for content, says in ((b"\n\n", "no example"), (None, "No such file")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        else:
            path = tmp_path / "absent.jsonl"
        with pytest.raises(Gemma4Error, match=says):
            read_records(path)
    with pytest.raises(Gemma4Error, match="holds no data"):
        read_records(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(Gemma4Error, match="not a regular file"):
        read_records(tmp_path / "pipe.jsonl")


# ---------------------------------------------------------------------------------------------------- batches


def test_length_limits(processor: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", {"text": "a b c d e f g h i j"}, {"text": "a"}, said("a b c d e f g h", "y"))
    cut = read_examples(path, processor, Encoding(max_length=8))
    assert (cut.truncated, cut.dropped, len(cut.items[0].ids)) == (2, 1, 8)
    left = read_examples(path, processor, Encoding(max_length=8, overlong="drop"))
    assert (left.truncated, left.dropped, len(left.items)) == (0, 2, 1)
    with pytest.raises(Gemma4Error, match="--max-length"):
        read_examples(path, processor, Encoding(max_length=2, overlong="drop"))
    with pytest.raises(Gemma4Error, match="99999999"):
        read_examples(path, processor, Encoding(max_length=99999999))


def test_few_lengths_and_an_order_that_the_seed_gives(processor: Any, tmp_path: Path) -> None:
    lengths = {padded_length(n, 4096) for n in range(1, 4097)}
    assert len(lengths) == 15 and all(padded_length(n, 4096) >= n for n in range(1, 4097))
    assert padded_length(100, 100) == 100 and padded_length(33, 4096) == 48
    path = written(tmp_path / "d.jsonl", *({"text": "a " * (1 + n % 20)} for n in range(50)))
    read = read_examples(path, processor, Encoding())
    batches = Batches(read, processor, batch_size=4, accumulate=2, seed=3)
    one, two = batches.epoch(0), batches.epoch(1)
    for epoch in (one, two):
        seen = sorted(i for step in epoch for rows in step for row in rows for i in row)
        assert seen == list(range(50)) and len(epoch) == 7
    assert one != two and one == Batches(read, processor, batch_size=4, accumulate=2, seed=3).epoch(0)
    assert one != Batches(read, processor, batch_size=4, accumulate=2, seed=4).epoch(0)
    shapes = {batches.make(rows).input_ids.shape for step in one for rows in step}
    assert shapes <= {(4, 32), (4, 48)}
    rest, held = read.split(0.1, seed=0)
    assert (len(rest.items), len(held.items)) == (45, 5)
    assert held.digest == read.split(0.1, seed=0)[1].digest != read.split(0.1, seed=1)[1].digest
    with pytest.raises(Gemma4Error, match="too few"):
        held.split(0.95, 0)


def test_packed_rows_hold_whole_examples(processor: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", *({"text": "a " * (1 + n % 9)} for n in range(12)))
    read = read_examples(path, processor, Encoding())
    batches = Batches(read, processor, batch_size=2, pack=True)
    steps = batches.epoch(0)
    rows = [row for step in steps for rows in step for row in rows]
    assert len(rows) < 12 and sorted(i for row in rows for i in row) == list(range(12))
    batch = batches.make(steps[0][0])
    for number, row in enumerate(steps[0][0]):
        for segment, index in enumerate(row):
            at = batch.segments[number] == segment
            assert batch.input_ids[number][at].tolist() == read.items[index].ids.tolist()
            assert batch.labels[number][at].tolist()[0] == IGNORED
