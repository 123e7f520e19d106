"""Renderings equal those of transformers 5.23.0 (``tests/reference/make_template_data.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma4_core.text.settings import TokenizerSettings
from gemma4_core.text.template import ChatTemplate
from gemma4_core.text.tiny import copy_tiny_tokenizer

DATA = Path(__file__).parent / "data" / "template"
RENDERINGS = json.loads((DATA / "renderings.json").read_text(encoding="utf-8"))
CASES = [(name, number) for name, cases in RENDERINGS.items() for number in range(len(cases))]


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> dict[str, ChatTemplate]:
    folder = tmp_path_factory.mktemp("templates")
    copy_tiny_tokenizer(folder)
    tiny = ChatTemplate.load(folder)
    assert tiny is not None
    named = TokenizerSettings.load(folder).named
    return {"tiny": tiny} | {
        name: ChatTemplate({"default": (DATA / f"{name}.jinja").read_text(encoding="utf-8")}, DATA, named)
        for name in ("launch", "dialect")
    }


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name}-{number}" for name, number in CASES])
def test_renders_as_transformers_does(templates, name: str, number: int):
    case = RENDERINGS[name][number]
    options = dict(case["options"])
    thinking = options.pop("enable_thinking", False)
    assert case["text"] is not None
    assert templates[name].render(case["messages"], thinking=thinking, **options) == case["text"]


def test_the_shipped_template_writes_what_the_released_models_expect(templates):
    tools = RENDERINGS["tiny"][9]["options"]["tools"]
    asked = [{"role": "user", "content": "Weather in Oslo?"}]
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    called = [*asked, {"role": "assistant", "tool_calls": [call]}]
    answered = [*called, {"role": "tool", "tool_call_id": "1", "content": {"temp": 5, "unit": "C"}}]
    render = templates["tiny"].render
    head = (
        '<bos><|turn>system\n<|tool>declaration:get_weather{description:<|"|>Get weather<|"|>,parameters:{properties:{'
        'city:{description:<|"|>City<|"|>,type:<|"|>STRING<|"|>}},required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}'
        "<tool|><turn|>\n<|turn>user\nWeather in Oslo?<turn|>\n<|turn>model\n"
    )
    assert render(asked, tools) == head
    head += '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|><|tool_response>'
    assert render(called, tools) == head
    head += 'response:get_weather{temp:5,unit:<|"|>C<|"|>}<tool_response|>'
    assert render(answered, tools) == head
    assert render(answered, tools, thinking=True).endswith("<tool_response|><|channel>thought\n")
