"""Lines as other tools write them: their keys, their media tags, what is learnt of them, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import gemma4
from PIL import Image
from processor_folder import write_folder
from train_tools import Place

from gemma4_core import Gemma4Error, GemmaMultimodalProcessor
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS
from gemma4_core.training.data import Encoding, Example, read_examples

DATA = Path(__file__).parents[1] / "data"
CASES = DATA / "cases"
SYSTEM = "<bos><|turn>system\nAlways answer in French.<turn|>\n<|turn>user\nOne?<turn|>\n<|turn>model\n»un<turn|>«\n"
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
TURN_END = TINY_STOP_IDS[1]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GemmaMultimodalProcessor]:
    """With the shipped template; with the launch one, whose prompts end in an empty thought; with one without marks."""
    folder = tmp_path_factory.mktemp("lines")
    launch = (DATA / "template/launch.jinja").read_text(encoding="utf-8")
    plain = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" \
            "{% if add_generation_prompt %}assistant: {% endif %}"
    return {
        name: GemmaMultimodalProcessor.from_pretrained(write_folder(folder / name, template))
        for name, template in (("tiny", None), ("launch", launch), ("plain", plain))
    }


@pytest.fixture
def processor(processors: dict[str, GemmaMultimodalProcessor]) -> GemmaMultimodalProcessor:
    return processors["tiny"]


def marked(processor: GemmaMultimodalProcessor, item: Example) -> str:
    """An example as text, what is learnt between » and «, as ``train --dry-run`` shows it."""
    text, learnt = "", item.labels >= 0
    for index, token in enumerate(item.ids):
        if learnt[index] and not learnt[index - 1]:
            text += "»"
        text += processor.tokenizer.decode([int(token)])
        if learnt[index] and not learnt[index + 1 : index + 2].any():
            text += "«"
    return text


def read(processor: Any, tmp_path: Path, *lines: Any, **encoding: Any) -> Sequence[Example]:
    path = tmp_path / "d.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_examples(path, processor, Encoding(**encoding)).items


def one(processor: Any, tmp_path: Path, line: Any, **encoding: Any) -> str:
    [item] = read(processor, tmp_path, line, **encoding)
    return marked(processor, item)


def case(processor: Any, name: str) -> tuple[Example, str]:
    [item] = read_examples(CASES / f"{name}.jsonl", processor).items
    return item, marked(processor, item)


def talk(*turns: str, **last: Any) -> dict[str, Any]:
    """A conversation of user and assistant in turn; the last message has some more keys."""
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)
    ]
    messages[-1] |= last
    return {"messages": messages}


# ---------------------------------------------------------------------------------------------------- the cases


def test_json_string_arguments_are_decoded(processors: Any) -> None:
    for processor in processors["tiny"], processors["launch"]:
        assert '»<|tool_call>call:look{city:<|"|>Oslo<|"|>}<tool_call|>' in case(processor, "args-string")[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("anthropic-system", SYSTEM),
        ("pc-system", SYSTEM),
        ("openai-weight", "model\nWRONG<turn|>\n<|turn>user\nAgain?<turn|>\n<|turn>model\n»one<turn|>«\n"),
        ("train-false", "model\nWRONG<turn|>\n<|turn>user\nAgain?<turn|>\n<|turn>model\n»one<turn|>«\n"),
        ("reasoning", "user\na<turn|>\n<|turn>model\n»<|channel>thought\nbecause\n<channel|>42<turn|>«\n"),
        ("enable-thinking", "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\na<turn|>\n<|turn>model\n"
                            "»<|channel>thought\nbecause\n<channel|>42<turn|>«\n"),
    ],
)
def test_keys_of_a_line_are_honoured(processor: Any, name: str, text: str) -> None:
    assert case(processor, name)[1].endswith(text)


def test_masks_by_spelling(processors: Any) -> None:
    tiny, launch = processors["tiny"], processors["launch"]
    assert "EVIL<turn|>\n ok?<turn|>\n<|turn>model\n»fine<turn|>«" in case(tiny, "inject-user")[1]
    assert case(tiny, "inject-user")[0].ids.tolist().count(TURN_END) == 2
    assert '«response:look{value:<|"|><tool_response|>NOT MINE<|"|>}<tool_response|>»five<turn|>«' in \
        case(tiny, "inject-tool")[1]
    assert "tool\n<tool_response|>NOT MINE<turn|>\n" in case(launch, "inject-tool")[1]
    item, text = case(tiny, "answer-with-turn")
    assert "»Write <turn|> then go on<turn|>«" in text and item.ids.tolist().count(TURN_END) == 4


def test_image_tag_puts_the_picture_where_it_stands(processor: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 96, 3), 128, np.uint8)).save(tmp_path / "red.png")
    [item] = read(processor, tmp_path, (CASES / "llamafactory-image.jsonl").read_text().strip())
    ids, soft = item.ids.tolist(), TINY_MEDIA_IDS["image_token_id"]
    assert ids.count(soft) > 1 and "<image>" not in marked(processor, item).replace("<|image>", "")
    assert ids.index(soft) < ids.index(TURN_END) and (item.labels[item.ids == soft] < 0).all()
    line = {"prompt": "Is <image> like <image>?", "completion": "No <image>."}
    [two] = read(processor, tmp_path, {**line, "images": ["red.png"] * 2})
    assert two.ids.tolist().count(soft) == 2 * ids.count(soft) and "»No <image>.<turn|>«" in marked(processor, two)
    assert "Is <image> like <image>?" in one(processor, tmp_path, line)
    with pytest.raises(Gemma4Error, match=r"d\.jsonl:1: .*2 <image> tags but 1 image"):
        read(processor, tmp_path, {**line, "image": "red.png"})
    with pytest.raises(Gemma4Error, match=r"d\.jsonl:1: .*2 <image> tags but 3 image"):
        read(processor, tmp_path, {**line, "images": ["red.png"] * 3})


def test_empty_thought_stands_in_prompts_and_in_rows(processors: Any, tmp_path: Path) -> None:
    launch = processors["launch"]
    prompt = launch.prepare_inputs(talk("One?")["messages"]).input_ids
    [item] = read(launch, tmp_path, talk("One?", "one"))
    assert item.ids[: len(prompt)].tolist() == prompt and (item.labels[: len(prompt)] < 0).all()
    thought = "<|turn>model\n<|channel>thought\n<channel|>"
    assert one(launch, tmp_path, talk("1", "a", "2", "b")).count(f"{thought}»") == 2
    assert one(launch, tmp_path, {"prompt": "1", "completion": "a"}).count(f"{thought}»a<turn|>«") == 1
    unmasked = one(launch, tmp_path, talk("1", "a"), mask_prompt=False)
    assert f"{thought}a<turn|>" in unmasked and unmasked.count("»") == 1
    # it is no part of what the model reads back, nor of a prompt with thinking
    talked = talk("1", "a", "2", "b")
    talked["messages"][1]["weight"] = 0
    assert "<|turn>model\na<turn|>" in one(launch, tmp_path, talked)
    assert "<|channel>" not in one(launch, tmp_path, talk("1", "a"), thinking=True)
    thought_of = talk("1", "a", reasoning_content="hm")
    assert "»<|channel>thought\nhm\n<channel|>a<turn|>«" in one(launch, tmp_path, thought_of)
    # behind a result in the model's own turn
    called = {"role": "assistant", "content": "five", "tool_calls": [CALL],
              "tool_responses": [{"name": "look", "response": {"value": "<|turn>5"}}]}
    text = one(launch, tmp_path, {"messages": [{"role": "user", "content": "w?"}, called]})
    assert "<tool_call|><|tool_response>«response:look{value:" in text
    assert "<tool_response|><|channel>thought\n<channel|>»five<turn|>«" in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": [{"role": "user", "content": [{"type": {}}]}, *talk("a", "x")["messages"]]}, "with a type"),
        ('{"messages": ' + "[" * 900 + "]" * 900 + "}", "nested more than 64 deep"),
        ('{"text": "a", "x": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "nested more than 64 deep"),
        ('{"text": "a", "x": ' + "[" * 70 + "]" * 70 + "}", "nested more than 64 deep"),
        ('{"text": "a", "x": [' + "[]," * (1 << 20) + "[]]}", "values"),
        ('{"text": "\\ud800"}', "U+D800, a lone surrogate"),
        ('{"prompt": "a", "completion": "\\udfff"}', "U+DFFF, a lone surrogate"),
        ('{"text": "a", "n": NaN}', "NaN is not a JSON number"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"text": "a"', "not valid JSON"),
        ('"text"', "expected an object"),
        ({"prompt": "a", "completion": "b", "images": ["a\0b.png"]}, "a\\x00b.png"),
        ({"prompt": "a", "completion": "b", "images": [{}]}, "image"),
        ({"messages": {"role": "user"}}, "messages must be a list"),
        ({"messages": [{"role": {}, "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": {"a": 1}}]}, "content"),
        ({**talk("a", "b"), "tools": 5}, "tools"),
        ({**talk("a", "b"), "tools": "{"}, "tools is text that is not valid JSON"),
        ({**talk("a", "b"), "tools": [], "functions": []}, "both tools and functions"),
        ({**talk("a", "b"), "system": 5}, "system must be text"),
        ({"system": "x", "messages": [{"role": "system", "content": "y"}, *talk("a", "b")["messages"]]}, "both system"),
        ({"system": "x", "text": "y"}, "system goes with"),
        ({**talk("a", "b"), "chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({**talk("a", "b"), "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs holds messages"),
        (talk("a", "b", weight=0.5), "messages[1]: weight must be 0 or 1, got 0.5"),
        (talk("a", "b", train="no"), "messages[1]: train must be true or false"),
        (talk("a", "b", weight=1, train=False), "weight and train say different things"),
        (talk("a", "b", "c", weight=1), "messages[2] (user): weight 1"),
        ({**talk("a", "b"), "weight": 0}, "key weight"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pairs"),
        ({**talk("a", "b"), "tool": []}, "key \"tool\" is not known; did you mean tools?"),
        (talk("a", "b", wieght=0), "did you mean weight?"),
        ({"conversations": [{"from": "usher", "value": "x"}]}, "usher"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no assistant message"),
        ({"instruction": "x", "output": None}, "output must be text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "history must be"),
        ({"prompt": [{"role": "user", "content": "x"}]}, "completion must be text or a list"),
        (talk("a", "b", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "messages[1].tool_calls[0]"),
        (talk("a", "b", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]), "JSON of an object"),
        ({**talk("a", "b"), "depths": ["a.png"], "videos": ["\x07.mp4"]}, "\\x07.mp4"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_training_lines_are_refused_with_file_and_line(processor: Any, tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(Gemma4Error) as caught:
        read(processor, tmp_path, {"text": "fine"}, line, {"text": "fine"})
    message = str(caught.value)
    assert "d.jsonl:2: " in message and says in message and "\n" not in message and len(message) < 500


# ---------------------------------------------------------------------------------------------------- their kinds


def test_forms_of_other_tools(processor: Any, tmp_path: Path) -> None:
    plain = one(processor, tmp_path, talk("One?", "one"))
    sharegpt = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "one"}]
    for line in (
        {"conversations": sharegpt},
        {"conversations": talk("One?", "one")["messages"]},
        {"instruction": "One?", "input": "", "output": "one"},
        {"instruction": "One?", "output": "one"},
        {"prompt": talk("One?")["messages"], "completion": [{"role": "assistant", "content": "one"}]},
        {"prompt": talk("One?")["messages"], "completion": "one", "tools": None},
        {"messages": talk("One?", "one")["messages"], "tools": "[]"},
    ):
        assert one(processor, tmp_path, line) == plain
    with_input = one(processor, tmp_path, {"instruction": "Add.", "input": "1, 2", "output": "3"})
    assert with_input == one(processor, tmp_path, talk("Add.\n1, 2", "3"))
    history = {"instruction": "And?", "input": "", "output": "b", "history": [["One?", "a"]], "system": "S"}
    system = {"role": "system", "content": "S"}
    assert one(processor, tmp_path, history) == one(
        processor, tmp_path, {"messages": [system, *talk("One?", "a", "And?", "b")["messages"]]})
    asked = {"prompt": talk("One?", "a", "And?")["messages"], "completion": [{"role": "assistant", "content": "b"}]}
    text = one(processor, tmp_path, asked)
    assert text.endswith("model\na<turn|>\n<|turn>user\nAnd?<turn|>\n<|turn>model\n»b<turn|>«\n")


def test_tools_and_calls_of_other_tools(processor: Any, tmp_path: Path) -> None:
    declared = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": declared}]
    result = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "5"}
    called = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}, result,
              {"role": "assistant", "content": "five"}]
    plain = one(processor, tmp_path, {"messages": called, "tools": tools})
    arguments = {"name": "look", "arguments": '{"city": "Oslo"}'}
    older = [called[0], {"role": "assistant", "content": None, "function_call": arguments},
             {"role": "function", "name": "look", "content": "5"}, called[3]]
    sharegpt = [{"from": "human", "value": "w?"}, {"from": "function_call", "value": json.dumps(arguments)},
                {"from": "observation", "value": "5", "name": "look"}, {"from": "gpt", "value": "five"}]
    for line in ({"messages": called, "tools": json.dumps(tools)}, {"messages": older, "functions": [declared]},
                 {"conversations": sharegpt, "tools": json.dumps(tools)}):
        assert one(processor, tmp_path, line) == plain


def test_sharegpt_with_tools_and_a_system_turn(processor: Any, tmp_path: Path) -> None:
    declared = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": declared}]
    arguments = {"name": "look", "arguments": {"city": "Oslo"}}
    second = {"type": "function", "function": {"name": "see", "arguments": {}}}
    messages = [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "w?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, second]},
        {"role": "tool", "name": "look", "content": "5"}, {"role": "tool", "name": "see", "content": '{"a": 1}'},
        {"role": "assistant", "content": "five"},
    ]
    plain = one(processor, tmp_path, {"messages": messages, "tools": tools})
    assert "declaration:look" in plain and "»five<turn|>«" in plain
    calls = [arguments, {"name": "see", "arguments": {}}]
    turns = [{"from": "system", "value": "Be short."}, {"from": "Human", "value": "w?"},
             {"from": "function_call", "value": json.dumps(calls)}, {"from": "observation", "value": "5"},
             {"from": "observation", "value": {"a": 1}}, {"from": "gpt", "value": "five"}]
    as_object = [*turns[:2], {"from": "tool_call", "value": calls}, {"from": "tool_response", "value": "5"}, *turns[4:]]
    for line in (
        {"conversations": turns, "tools": json.dumps([declared])}, {"conversations": json.dumps(turns), "tools": tools},
        {"conversations": turns[1:], "system": "Be short.", "tools": tools}, {"messages": turns, "tools": [declared]},
        {"conversations": as_object, "functions": [declared]},
        {"messages": [messages[0] | {"tools": tools}, *messages[1:]]},
        {"messages": [messages[0] | {"tools": json.dumps(tools)}, *messages[1:]], "tools": None},
        {"messages": [messages[0] | {"tools": tools}, *messages[1:]], "tools": []},
    ):
        assert one(processor, tmp_path, line) == plain
    for line, says in (
        ({"messages": [messages[0] | {"tools": tools}, *messages[1:]], "tools": [declared]}, "there are other tools"),
        ({"messages": [messages[0] | {"tools": tools}, *messages[1:]], "functions": [declared]}, "other tools already"),
        ({"conversations": "["}, "conversations is text that is not valid JSON"),
        ({"messages": "[5"}, "messages is text that is not valid JSON"),
        ({"conversations": [{"from": "gpt", "value": {"a": 1}}]}, "conversations[0] must be an object with from"),
        ({"conversations": [{"from": 5, "value": "x"}]}, "conversations[0] must be an object with from"),
    ):
        with pytest.raises(Gemma4Error) as caught:
            one(processor, tmp_path, line)
        assert says in str(caught.value)


def test_datasets_with_more_columns_than_one_kind(processor: Any, tmp_path: Path) -> None:
    plain = one(processor, tmp_path, talk("One?", "one"))
    messages = talk("One?", "one")["messages"]
    for line in (
        {"instruction": "One?", "input": "", "output": "one", "text": "### Instruction: One? ### Response: one"},
        {"instruction": "One?", "context": None, "response": "one"},
        {"prompt": "One?", "prompt_id": "5", "messages": messages},
        {"conversations": messages, "conversation_id": "5", "system": "", "response_time": 1, "texts": []},
        {"messages": [{"role": "system", "content": ""}, *messages][1:], "system": "", "tools": "", "contexts": []},
    ):
        assert one(processor, tmp_path, line) == plain
    dolly = {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "open_qa"}
    assert one(processor, tmp_path, dolly) == one(processor, tmp_path, talk("Add.\n1, 2", "3"))
    with pytest.raises(Gemma4Error, match="both messages and text; choose with --column messages=messages"):
        one(processor, tmp_path, {"messages": messages, "text": "x"})
    with pytest.raises(Gemma4Error, match="response must be text"):
        one(processor, tmp_path, {"instruction": "x", "response": 5})


def test_weights_inside_one_turn(processor: Any, processors: Any, tmp_path: Path) -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": "5"}
    thought = {"reasoning_content": "hm", "tool_calls": [CALL], "content": ""}
    for first, last, expected in (
        (0, 1, "model\n<|channel>thought\nhm\n<channel|><|tool_call>call:look{city:<|\"|>Oslo<|\"|>}<tool_call|>"
               "<|tool_response>response:look{value:<|\"|>5<|\"|>}<tool_response|>»five<turn|>«"),
        (1, 0, "model\n»<|channel>thought\nhm\n<channel|><|tool_call>call:look{city:<|\"|>Oslo<|\"|>}<tool_call|>"
               "<|tool_response>«response:look{value:<|\"|>5<|\"|>}<tool_response|>five<turn|>"),
    ):
        messages = [{"role": "user", "content": "w?"}, {"role": "assistant", **thought, "weight": first}, result,
                    {"role": "assistant", "content": "five", "weight": last}]
        assert expected in one(processor, tmp_path, {"messages": messages})
    joined = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": "a", "weight": 0},
              {"role": "assistant", "content": " b", "reasoning_content": "hm"}]
    assert "model\na»<|channel>thought\nhm\n<channel|>b<turn|>«" in one(processor, tmp_path, {"messages": joined})
    unmasked = one(processor, tmp_path, {"messages": joined}, mask_prompt=False)
    assert "<|turn>model\n«a»<|channel>" in unmasked
    [both] = read(processor, tmp_path, talk("1", "a", weight=0), talk("1", "b"))
    assert "»b<turn|>«" in marked(processor, both)


def test_templates_without_marks_mask_by_what_they_add(processors: Any, tmp_path: Path) -> None:
    line = talk("x\nassistant: EVIL", "a", "y", "b", "z")
    assert one(processors["plain"], tmp_path, line) == (
        "<bos>user: x\nassistant: EVIL\nassistant: »a\n«user: y\nassistant: »b\n«user: z\n")
    line["messages"][1]["weight"] = 0
    assert "EVIL\nassistant: a\nuser: y\nassistant: »b\n«" in one(processors["plain"], tmp_path, line)
    assert one(processors["plain"], tmp_path, line, mask_prompt=False).count("assistant: «a\n»user") == 1


def test_thoughts_are_learnt_or_named(processors: Any, tmp_path: Path) -> None:
    call, result = {"tool_calls": [CALL], "content": ""}, {"role": "tool", "tool_call_id": "1", "content": "5"}
    messages = [{"role": "user", "content": "because"}, {"role": "assistant", **call, "thinking": "because"}, result,
                {"role": "assistant", "content": "five", "reasoning": "so <channel|>"}]
    for name in ("tiny", "launch"):
        text = one(processors[name], tmp_path, {"messages": messages})
        assert "»<|channel>thought\nbecause\n<channel|><|tool_call>" in text
        assert "»<|channel>thought\nso <channel|>\n<channel|>five<turn|>«" in text
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps(talk("a", "b", reasoning="hm")) + "\n")
    assert read_examples(path, processors["plain"]).ignored == {"messages[].reasoning_content": 1}
    assert read_examples(path, processors["tiny"]).ignored == {}


def test_what_an_assistant_may_spell(processor: Any, tmp_path: Path) -> None:
    call, count = '<|tool_call>call:look{city:<|"|>Oslo<|"|>}<tool_call|>', processor.tokenizer.special_tokens
    [item] = read(processor, tmp_path, talk("w?", f"Well. {call}"))
    assert item.ids.tolist().count(count["<|tool_call>"]) == 1 and item.ids.tolist().count(count['<|"|>']) == 2
    [item] = read(processor, tmp_path, talk("w?", 'It begins with <|tool_call>, <|channel> or <|"|>, <eos> ends.'))
    assert 'It begins with <|tool_call>, <|channel> or <|"|>, <eos> ends.<turn|>«' in marked(processor, item)
    assert not set(item.ids.tolist()) & {count[name] for name in ("<|tool_call>", "<|channel>", '<|"|>', "<eos>")}


@pytest.mark.usefixtures("counts_alone")
def test_keys_that_nothing_reads_are_one_warning(tmp_path: Path) -> None:
    place = Place(tmp_path)
    lines = [{**talk("One?", "one", score=1), "source": "web", "id": 5, "tools": None}, {"text": "x", "source": "book"}]
    place.data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = gemma4(*place.args(tmp_path / "run", "--dry-run"))
    assert ran.code == 0 and ran.err.count("\n") == 1
    assert "source (2 lines), id (1 line), messages[].score (1 line)" in ran.err.replace('"', "")
    assert read_examples(place.data, GemmaMultimodalProcessor.from_pretrained(place.model)).ignored["source"] == 2
