"""Renderings equal those of transformers 5.23.0 (``tests/reference/make_template_data.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma4_core.errors import InputError
from gemma4_core.text.settings import TokenizerSettings
from gemma4_core.text.template import ChatTemplate
from gemma4_core.text.tiny import copy_tiny_tokenizer

DATA = Path(__file__).parents[1] / "data" / "template"
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


SYSTEM = [{"type": "text", "text": "Be brief. "}, {"type": "text", "text": "Be kind."}]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(("name", "between"), [("launch", " "), ("tiny", "")])
def test_system_parts_are_their_text(templates, name: str, between: str, role: str):
    """The launch template reads no parts there, the shipped one joins them itself."""
    render, asked = templates[name].render, {"role": "user", "content": "Hi"}
    parts = render([{"role": role, "content": SYSTEM}, asked])
    assert parts == render([{"role": role, "content": f"Be brief.{between}Be kind."}, asked])
    tools = RENDERINGS["tiny"][9]["options"]["tools"]
    assert "Be brief." in render([{"role": role, "content": SYSTEM}, asked], tools, thinking=True)
    assert render([{"role": role, "content": []}, asked]) == render([{"role": role, "content": ""}, asked])


def test_a_template_that_reads_system_parts_gets_them(templates):
    """As the revisions of 2026 do, whose spaces stay."""
    text = (
        "{% if messages[0]['content'] is string %}{{ messages[0]['content'] | trim }}{% else %}"
        "{% for item in messages[0]['content'] %}{{ item['text'] | trim + ' ' }}{% endfor %}{% endif %}"
    )
    own = ChatTemplate({"default": text}, DATA, {})
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hi"}]
    assert own.render(asked) == "Be brief. Be kind. "


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_media_in_system_parts_are_refused(templates, role: str, kind: str):
    messages = [{"role": role, "content": [*SYSTEM, {"type": kind}]}, {"role": "user", "content": "Hi"}]
    says = rf"messages\[0\].content\[2\]: a {role} message holds text only; put the {kind} into a user message"
    with pytest.raises(InputError, match=says):
        templates["launch"].render(messages)


def test_parts_of_a_tool_result_are_their_text(templates):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    parts = [{"type": "text", "text": "5 "}, {"type": "text", "text": "C"}]

    def render(content: object) -> str:
        return templates["tiny"].render([
            {"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": content}])

    assert render(parts) == render("5 C") and 'response:f{value:<|"|>5 C<|"|>}' in render(parts)
