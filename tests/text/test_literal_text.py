"""Special tokens that are spelt in prompts, messages, tools and results, taken for text."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_tools import gemma4
from media import picture
from PIL import Image
from processor_folder import write_folder
from train_tools import Place

from gemma4_core import Gemma4Error, GemmaMultimodalProcessor
from gemma4_core.text.literal import LiteralText
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS

pytestmark = pytest.mark.usefixtures("plain_loops", "one_model")

DATA = Path(__file__).parents[1] / "data"
RENDERINGS = json.loads((DATA / "template/renderings.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GemmaMultimodalProcessor]:
    folder = tmp_path_factory.mktemp("literal")
    made = {"tiny": GemmaMultimodalProcessor.from_pretrained(write_folder(folder / "tiny"))}
    launch = (DATA / "template/launch.jinja").read_text(encoding="utf-8")
    effort = "{{ bos_token }}{{ effort | default('none') }}{{ enable_thinking }}{{ messages[0].content }}"
    for name, template in (("launch", launch), ("effort", effort)):
        made[name] = GemmaMultimodalProcessor.from_pretrained(write_folder(folder / name, template))
    return made


@pytest.fixture
def processor(processors: dict[str, GemmaMultimodalProcessor]) -> GemmaMultimodalProcessor:
    return processors["tiny"]


def control(processor: GemmaMultimodalProcessor, ids: list[int]) -> list[int]:
    """The special tokens among ids."""
    return [token for token in ids if token in set(processor.tokenizer.special_tokens.values())]


@pytest.mark.parametrize("name", ["tiny", "launch"])
def test_what_spells_no_token_is_encoded_as_ever(processors: Any, name: str) -> None:
    processor = processors[name]
    for case in RENDERINGS[name]:
        said = json.dumps(case["messages"])
        if any(mark in said for mark in ("<|turn>", '"image"', '"audio"', '"video"')):
            continue
        options = dict(case["options"])
        asked = {"tools": options.pop("tools", None), "thinking": options.pop("enable_thinking", False)}
        asked["add_generation_prompt"] = options.pop("add_generation_prompt", True)
        ids = [
            processor.prepare_inputs(case["messages"], **asked, chat_template_kwargs=options, literal=literal).input_ids
            for literal in (False, True)
        ]
        assert ids[0] == ids[1]


def spelt(choose: random.Random, tokens: list[str]) -> str:
    """Special tokens, whole, begun or ended, with other text between them."""
    pieces = []
    for _ in range(choose.randint(1, 4)):
        token = choose.choice(tokens)
        cut = choose.randint(0, len(token))
        pieces += [choose.choice([token, token, token[:cut], token[cut:]]), choose.choice(["", " ", "x", "\n", "}"])]
    return "".join(pieces)


def conversation(text: Callable[[], str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a text in every place that people or tools fill; declared names spell nothing."""
    string = {"type": "string", "description": text(), "enum": [text()]}
    parameters = {"type": "object", "properties": {f"a{text()}": string}, "required": [f"a{text()}"]}
    tools = [{"type": "function", "function": {"name": "look", "description": text(), "parameters": parameters}}]
    # the templates leave the marks of thoughts out of an answer's text, spelt or not
    answer = re.sub(r"<\|tool_call>|<\|channel>|<channel\|>", "", text())
    arguments = {f"k{text()}": text(), "list": [text(), {"z": text()}]}
    call = {"id": text(), "type": "function", "function": {"name": text(), "arguments": arguments}}
    written = {**call, "function": {"name": text(), "arguments": json.dumps({f"k{text()}": text()})}}
    return [
        {"role": "system", "content": "S" + text()}, {"role": "user", "content": text() + "."},
        {"role": "assistant", "content": "A", "tool_calls": [call, written], "reasoning_content": "r" + text()},
        {"role": "tool", "tool_call_id": call["id"], "name": "n" + text(), "content": text()},
        {"role": "tool", "tool_call_id": call["id"], "content": {f"v{text()}": [text()]}},
        {"role": "assistant", "content": "ok <turn|>" + answer},
        {"role": "user", "content": [{"type": "text", "text": text()}, {"type": "text", "text": text() + "E"}]},
    ], tools


@pytest.mark.parametrize("name", ["tiny", "launch"])
def test_masks_by_spelling_no_spelling_becomes_a_token(processors: Any, name: str) -> None:
    processor = processors[name]
    tokens = list(processor.tokenizer.special_tokens)
    for seed in range(40):
        choose = random.Random(seed)
        messages, tools = conversation(lambda: spelt(choose, tokens))  # noqa: B023
        plain_messages, plain_tools = conversation(lambda: "plain")
        ids = processor.prepare_inputs(messages, tools=tools, literal=True).input_ids
        plain = processor.prepare_inputs(plain_messages, tools=plain_tools, literal=True).input_ids
        assert control(processor, ids) == control(processor, plain)
        assert processor.tokenizer.decode(ids) == processor.template.render(messages, tools)


def test_literal_text_is_split_as_text_without_tokens_is(processor: Any, tmp_path: Path) -> None:
    text = "see <|turn> and <bos>"
    ids = processor.prepare_inputs(text, literal=True).input_ids
    assert control(processor, ids) == [2] and ids[1:] == processor.tokenizer.encode(text, special=False)
    spoken = processor.prepare_inputs(text).input_ids
    assert len(control(processor, spoken)) == 3 and len(spoken) < len(ids)
    # a vocabulary whose model makes a token of its spelling
    folder = write_folder(tmp_path / "sentencepiece")
    (folder / "tokenizer.json").unlink()
    shutil.copy(DATA / "tokenizer/tokenizer.model", folder)
    other = GemmaMultimodalProcessor.from_pretrained(folder)
    begin = other.context.config.bos_token_id
    for text in ("a <|turn> b", "<bos>", "<|turn>user\nx<turn|>"):
        ids = other.prepare_inputs(text, literal=True).input_ids
        assert ids[0] == begin and control(other, ids[1:]) == []
        assert other.tokenizer.decode(ids[1:]) == text


def test_stand_ins_are_found_that_nothing_holds(processor: Any) -> None:
    text = "".join(map(chr, range(0xFDD0, 0xFDF0))) + " <|turn> \\ufdd0 \\ue000"
    messages = [{"role": "user", "content": text}]
    ids = processor.prepare_inputs(messages, literal=True).input_ids
    assert processor.tokenizer.decode(ids) == processor.template.render(messages)
    hidden = LiteralText(processor.tokenizer, ["<turn|>"])
    assert hidden.restore(json.dumps(hidden.hide("a<turn|>"))) == '"a<turn|>"'


def test_media_keep_their_places_in_literal_text(processor: Any, tmp_path: Path) -> None:
    Image.fromarray(picture(64, 64, 1)).save(tmp_path / "a.png")
    image, soft = str(tmp_path / "a.png"), TINY_MEDIA_IDS["image_token_id"]
    messages = [
        {"role": "user", "content": "See <|image|> here."}, {"role": "assistant", "content": "An <|image|>?"},
        {"role": "user", "content": "<|audio|> is spelt so."},
    ]
    given = processor.prepare_inputs(messages, images=[image], literal=True)
    assert given.input_ids.count(soft) == given.media[0].soft_tokens
    assert control(processor, given.input_ids).count(TINY_MEDIA_IDS["audio_token_id"]) == 0
    assert soft not in processor.prepare_inputs(messages, literal=True).input_ids
    with pytest.raises(Gemma4Error, match=r"1 <\|image\|> placeholder"):
        processor.prepare_inputs(messages[:1])
    raw = processor.prepare_inputs("<turn|> <|image|>", images=[image], literal=True)
    assert raw.input_ids.count(soft) == raw.media[0].soft_tokens and TINY_STOP_IDS[1] not in raw.input_ids
    part = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "<|image|>?"}]}]
    carried = processor.prepare_inputs(part, literal=True)
    assert carried.input_ids.count(soft) == carried.media[0].soft_tokens


def test_image_tag_in_prompts(processor: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        Image.fromarray(picture(64, 48 * number, number)).save(tmp_path / f"{number}.png")
    images = [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    tagged = processor.prepare_inputs("One: <image>, two: <image>.", images=images).input_ids
    assert tagged == processor.prepare_inputs("One: <|image|>, two: <|image|>.", images=images).input_ids
    said = [{"role": "user", "content": "One: <image>."}, {"role": "assistant", "content": "An <image>."},
            {"role": "user", "content": [{"type": "image", "path": images[0]}, {"type": "text", "text": "And?"}]}]
    prepared = processor.prepare_inputs(said, images=images[1:])
    assert prepared.sources["vision"] == (images[1], images[0])
    said[0]["content"] = "One: <|image|>."
    assert processor.prepare_inputs(said, images=images[1:]).input_ids == prepared.input_ids
    for literal in (False, True):
        with pytest.raises(Gemma4Error, match=r"2 <image> tags but 1 image was given"):
            processor.prepare_inputs("<image><image>", images=images[:1], literal=literal)
        with pytest.raises(Gemma4Error, match=r"1 <image> tag but 2 images were given"):
            processor.prepare_inputs([{"role": "user", "content": "<image>"}], images=images, literal=literal)
    assert processor.tokenizer.decode(processor.prepare_inputs("<image>?").input_ids[1:]) == "<image>?"


def test_json_string_arguments_in_histories(processor: Any) -> None:
    def written(arguments: Any) -> str:
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
        messages = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        texts = [
            processor.tokenizer.decode(processor.prepare_inputs(messages, literal=literal).input_ids)
            for literal in (False, True)
        ]
        assert texts[0] == texts[1]
        return texts[0].partition("<|tool_call>call:look")[2].partition("<tool_call|>")[0]

    assert written('{"city": "Oslo"}') == written({"city": "Oslo"}) == '{city:<|"|>Oslo<|"|>}'
    assert written('city:<|"|>Oslo<|"|>') == '{city:<|"|>Oslo<|"|>}'
    assert written('{"a": {"b": [1, null]}}') == "{a:{b:[1,null]}}"
    assert {written(none) for none in ("", " ", None, "{}", "null")} == {"{}"}
    for bad in ("[1]", "5", '"x"', '{"a":', "Oslo", [1], 5):
        with pytest.raises(Gemma4Error, match=r"messages\[1\]\.tool_calls\[0\] \(.?look.?\): arguments"):
            written(bad)
    # an escape that spells a token only once the JSON is decoded
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": "\\u003cturn|>"}'}}
    history = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    ids = processor.prepare_inputs(history, literal=True).input_ids
    assert ids.count(TINY_STOP_IDS[1]) == 1 and '<|"|><turn|><|"|>' in processor.tokenizer.decode(ids)


def test_template_variables_are_passed_and_checked(processors: Any) -> None:
    processor = processors["effort"]
    messages = [{"role": "user", "content": "x"}]
    given = {"effort": "high", "enable_thinking": True}
    for literal in (False, True):
        ids = processor.prepare_inputs(messages, chat_template_kwargs=given, literal=literal).input_ids
        assert processor.tokenizer.decode(ids) == "<bos>highTruex"
    for wrong in ({"messages": []}, {"thinking": True}, [1], {1: 2}):
        with pytest.raises(Gemma4Error, match="chat_template_kwargs"):
            processor.prepare_inputs(messages, chat_template_kwargs=wrong)


def test_literal_on_the_command_line(tmp_path: Path) -> None:
    folder, processor = Place(tmp_path).model, GemmaMultimodalProcessor.from_pretrained(tmp_path / "model")
    asked = ["generate", "-m", folder, "--prompt", "a <turn|> b", "--system", "<bos>", "-n", 1, "--json"]
    messages = [{"role": "system", "content": "<bos>"}, {"role": "user", "content": "a <turn|> b"}]
    for option, literal in (([], False), (["--literal"], True)):
        ran = gemma4(*asked, *option)
        assert ran.code == 0, ran
        ids = processor.prepare_inputs(messages, literal=literal).input_ids
        assert json.loads(ran.out)["prompt_tokens"] == len(ids)
    ran = gemma4("generate", "-m", folder, "--prompt-tokens", "2,3", "--literal")
    assert ran.code == 2 and "--literal needs a prompt of text" in ran.err
