"""Where a chat template is found, what it is given, and every way that it can be wrong."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gemma4_core.contracts import Context
from gemma4_core.errors import InputError, TokenizerError
from gemma4_core.text import prompt_ids, render_process
from gemma4_core.text.template import SIZE_LIMIT, ChatTemplate
from gemma4_core.text.tiny import copy_tiny_tokenizer
from gemma4_plugins.tokenizers import huggingface

HI = [{"role": "user", "content": "Hi"}]


def template(text: str) -> ChatTemplate:
    return ChatTemplate({"default": text}, Path("models/x/chat_template.jinja"), {"bos_token": "<bos>"})


def failure(text: str, messages: list = HI, error: type[Exception] = TokenizerError, **variables: object) -> str:
    with pytest.raises(error) as caught:
        template(text).render(messages, **variables)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert error is not TokenizerError or "models/x/chat_template.jinja" in message
    return message


# ------------------------------------------------------------------------------------------------- files


def test_no_template_is_none(tmp_path: Path):
    assert ChatTemplate.load(None) is None and ChatTemplate.load(tmp_path) is None
    copy_tiny_tokenizer(tmp_path, template=False)
    assert ChatTemplate.load(tmp_path) is None


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_byte_order_mark_before_a_template_is_dropped(tmp_path: Path, name: str):
    text = "\ufeff{{ bos_token }}x"
    config = {"bos_token": "<bos>", **({"chat_template": text} if name == "tokenizer_config.json" else {})}
    (tmp_path / "tokenizer_config.json").write_text("\ufeff" + json.dumps(config), encoding="utf-8")
    if name != "tokenizer_config.json":
        content = text if name.endswith("jinja") else "\ufeff" + json.dumps({"chat_template": text})
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert ChatTemplate.load(tmp_path).render(HI) == "<bos>x"


def test_the_jinja_file_comes_before_the_json_files(tmp_path: Path):
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config {{ bos_token }}", "bos_token": {"content": "<s>"}}))
    assert ChatTemplate.load(tmp_path).render(HI) == "config <s>"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "old {{ eos_token }}"}))
    assert ChatTemplate.load(tmp_path).render(HI) == "old <eos>"
    (tmp_path / "chat_template.jinja").write_text("own é")
    assert ChatTemplate.load(tmp_path).render(HI) == "own é"


def test_of_several_templates_tools_take_their_own(tmp_path: Path):
    texts = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": texts}))
    loaded = ChatTemplate.load(tmp_path)
    assert loaded.render(HI) == "plain" and loaded.render(HI, tools=[{"name": "f"}]) == "1"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": texts[1:]}))
    with pytest.raises(TokenizerError, match="no 'default' among \"tool_use\""):
        ChatTemplate.load(tmp_path).render(HI)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
        ("chat_template.jinja", b"x" * (SIZE_LIMIT + 1), "larger than"),
        ("chat_template.json", b"{", "not valid JSON"),
        ("chat_template.json", b'{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "name and template"),
        ("tokenizer_config.json", b'{"chat_template": "' + b"x" * (1 << 21) + b'"}', "longer than"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, data: bytes, says: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=says) as caught:
        ChatTemplate.load(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and len(str(caught.value)) < 500


def test_a_folder_of_that_name_is_no_template(tmp_path: Path):
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(TokenizerError, match="not a regular file"):
        ChatTemplate.load(tmp_path)


def test_bos_of_the_template_is_not_doubled(tmp_path: Path):
    copy_tiny_tokenizer(tmp_path)
    tokenizer = huggingface.load(Context(folder=tmp_path))
    text = ChatTemplate.load(tmp_path).render(HI)
    assert text.startswith("<bos>") and prompt_ids(tokenizer, text, 2).count(2) == 1


# ------------------------------------------------------------------------------------------------- what it is given


def test_thinking_and_further_variables_reach_the_template():
    text = "{{ enable_thinking }} {{ effort }} {{ add_generation_prompt }}"
    assert template(text).render(HI, thinking=True, effort="high") == "True high True"
    assert template(text).render(HI, add_generation_prompt=False, effort=2) == "False 2 False"


def test_values_become_plain_and_the_callers_stay_as_they_were():
    class Colour(enum.StrEnum):
        RED = "red"

    @dataclass
    class Extra:
        size: int

    message = {"role": "user", "content": [{"type": "image", "image": np.zeros((2, 2)), "n": np.int64(3)}],
               "colour": Colour.RED, "extra": Extra(4), "gone": None, "pair": (1, 2.5), "flag": np.bool_(False)}
    text = "{{ messages[0] | tojson }}"
    assert json.loads(template(text).render([message])) == {
        "role": "user", "content": [{"type": "image", "image": "<ndarray>", "n": 3}], "colour": "red",
        "extra": {"size": 4}, "pair": [1, 2.5], "flag": False}
    assert message["gone"] is None and isinstance(message["content"][0]["image"], np.ndarray)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_has_one_name_in_templates(key: str):
    message = {"role": "assistant", key: "because"}
    assert template("{{ messages[0].reasoning_content }}").render([message]) == "because"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is empty"),
        ("Hi", "list of objects"),
        ({"role": "user"}, "list of objects"),
        (["Hi"], r'messages\[0\] must be an object with role and content, not "Hi"'),
        ([*HI, {"content": "x"}], r"messages\[1\] has role null"),
        ([{"role": "wizard", "content": "x"}], 'has role "wizard"; a role is one of system'),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\] has role"),
        ([{"role": "user"}], r"messages\[0\] \(user\) has no content"),
        ([{"role": "assistant", "content": None}], "has no content"),
        ([{"role": "user", "content": 5}], "text or a list of parts, not 5"),
        ([{"role": "user", "content": {"a": 1}}], "text or a list of parts"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\] must be an object"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r'\[0\] has type "image_url"; a part is one of'),
        ([{"role": "user", "content": [{"text": "x"}]}], "has type null"),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "text part whose text is 7"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text part whose text is null"),
        ([{"role": "assistant", "tool_calls": "f()"}], r'tool_calls must be a list, not "f\(\)"'),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], r"tool_calls\[0\] must be an object whose function"),
    ],
)
def test_messages_of_a_wrong_shape_are_refused(messages: object, says: str):
    with pytest.raises(InputError, match=says) as caught:
        template("x").render(messages)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("tools", ["f", {"type": "function"}, [print], ["f"], [None]])
def test_tools_of_a_wrong_shape_are_refused(tools: object):
    failure("x", error=InputError, tools=tools)


def test_messages_nested_without_end_are_refused():
    deep: list = []
    deep.append(deep)
    assert "nested too deeply" in failure("x", [{"role": "user", "content": "x", "deep": deep}], InputError)


def test_a_lone_surrogate_in_a_message_is_named():
    with pytest.raises(TokenizerError, match=r"U\+D800"):
        template("{{ messages[0].content }}").render([{"role": "user", "content": "\ud800"}])


# ------------------------------------------------------------------------------------------------- failures


def test_what_the_template_says_is_passed_on_with_its_line():
    message = failure("\n\n{{ raise_exception('roles must\nalternate') }}")
    assert "line 3: the chat template refuses these messages" in message and r"roles must\nalternate" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% if %}", "line 1: the chat template is not valid jinja"),
        ("ok\n{% for x in y %}", "not valid jinja"),
        ("{% nonsense %}", "nonsense"),
        ("{{ 'x' | nofilter }}", "nofilter"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("\n{{ 1 / 0 }}", "line 2: the chat template failed: ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{% import 'os' as os %}", "failed"),
        ("{% break %}", "the chat template"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "the chat template"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("", "writes nothing"),
        ("{{ ''.nothing }} \n", "writes nothing"),
        ("{{ 'x' | float | int(base=99) | tojson(indent='y' * 3, separators=1) }}", "failed"),
    ],
)
def test_a_broken_template_is_one_line(text: str, says: str):
    assert says in failure(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].pop('role') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ dict.mro() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ messages | attr('__class__') | attr('__mro__') }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ strftime_now.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ (messages | map('first')).gi_frame.f_back.f_globals }}",
        "{{ environment.globals }}",
        "{{ {}.__class__ }}",
        "{{ (1).__init__.__self__.__class__ }}",
        "{{ 'x'.format.__self__.__class__ }}",
        "{{ '{0.__class__}'.format_map({'0': messages}) }}",
        "{{ ('{0.' ~ '__class__}').format(messages) }}",
        "{{ '%s' % messages.__class__ }}",
        "{{ ['__class__'] | map('attr', messages) | list | first | string }}",
        "{{ messages | map(attribute='__class__') | list | first }}",
        "{{ messages | groupby('__class__') | first | first }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ cycler.next.__code__ }}",
        "{{ caller.__func__ }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{{ loop.__class__ }}{% for a in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{{ tojson.__globals__ }}{{ url_for.__globals__ }}",
        "{{ range.__base__ }}{{ ''.join.__class__ }}",
    ],
)
def test_no_way_out_of_the_sandbox(text: str):
    """Either refused or an empty text: never a look at Python's inside."""
    failure(text)


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ messages | string * 1000 }}{% endfor %}",
    "{% for a in range(99999) if (range(99999) | sum) < 0 %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{{ range(10 ** 9) | list }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(x=3) %}{% for a in range(64) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for a in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for a in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for a in range(64) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for a in range(64) %}{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for a in range(64) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for a in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for a in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x={}) %}{% for a in [1]*64 %}{% set n.x = {1: n.x, 2: n.x} %}{% endfor %}{{ n.x | string }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a' | indent(10 ** 10, true) }}",
    "{{ [1, [2]] | tojson(indent=10 ** 10) }}",
    "{{ 'a'.ljust(10 ** 10) }}{{ 'a'.zfill(10 ** 10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ (range(99999) | map('string')) | join('x' * 100000) }}",
    "{{ ('x' * 100000).join(range(99999) | map('string')) }}",
    "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "{{ 'x' | batch(10 ** 10, 'y') | list }}",
]


MEMORY_BOMBS = [
    "{{ (1).to_bytes(6000000000, 'big') }}",
    "{{ ('中' * 67000000) | list }}",
    "{{ '{:>{}}'.format('a', '9999999999') }}",
    "".join("{% set a" + str(i) + " = '😀' * 67000000 %}" for i in range(30)),
    "{{ 'a'.center(10 ** 10) }}",
    "{{ 'a\n' * 9999999 * 2 ** 6 }}",
    "{% set x = 'a' * 9999999 %}{{ ([x] * 99) | join }}",
]
"""Each single operation, or all that they keep, would take gigabytes."""


TIME_BOMBS = [
    "{% set n = namespace(x=[1], y=[1]) %}{% for a in range(64) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
    "{% endfor %}{{ n.x == n.y }}",
    "{% set n = namespace(x=(1,)) %}{% for a in range(64) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}",
    "{% set n = namespace(x=[1], y=[1]) %}{% for a in range(64) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
    "{% endfor %}{{ n.x in [n.y] }}",
    "{{ ([[1] * 1000] * 99999) | sum(start=[]) }}",
    "{{ ('a' * 99999) | list | unique | list }}{{ ('ab' * 999999).count('b' * 2) }}{{ 7 ** 9999999 % 10 }}",
    "{{a}}" * 200_000,
]
"""Single operations that do not end, and compiling."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little time, and a process of its own for a test."""
    render_process.end()
    monkeypatch.setattr(render_process, "SECONDS", 0.2)
    yield
    render_process.end()


@pytest.mark.parametrize("text", MEMORY_BOMBS, ids=lambda text: text[:30])
def test_template_memory_is_limited(text: str):
    """The system holds the process to its limit (``test_the_limits_are_set``)."""
    assert "was stopped: it needs more than 512 MiB of memory" in failure(text)


@pytest.mark.parametrize("text", TIME_BOMBS, ids=lambda text: text[:30])
def test_template_time_is_limited(text: str, quick: None):
    assert "was stopped: it runs longer than 0.2 seconds" in failure(text)


@pytest.mark.parametrize("text", BOMBS, ids=lambda text: text[:30])
def test_bombs_are_stopped(text: str, quick: None):
    said = failure(text)
    assert any(words in said for words in ("was stopped", "Range too big", "OverflowError", "ValueError")), said


def test_one_rendering_does_not_use_up_the_next(monkeypatch: pytest.MonkeyPatch, quick: None):
    monkeypatch.setattr(render_process, "CHARACTERS", 1000)
    own = template("{{ messages[0].content }}")
    for _ in range(5):
        assert own.render([{"role": "user", "content": "x" * 600}]) == "x" * 600
    assert "writes more than" in failure("{{ 'x' * 1001 }}")


def test_a_long_conversation_is_within_the_limits(tmp_path: Path):
    copy_tiny_tokenizer(tmp_path)
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 2000} for i in range(401)]
    assert len(ChatTemplate.load(tmp_path).render(messages)) > 4_000_000


def test_threads_render_one_after_another():
    own, texts = template("{% for m in messages %}{{ m.content }}{% endfor %}"), []
    threads = [
        threading.Thread(target=lambda i=i: texts.append(own.render([{"role": "user", "content": str(i)}] * 200)))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [str(i) * 200 for i in range(4)]


def test_jinja2_is_not_imported_to_render():
    code = f"""
import sys, gemma4_core.text
assert not {{'jinja2', 'tinygrad', 'tokenizers'}} & set(sys.modules)
from pathlib import Path
print(gemma4_core.text.ChatTemplate({{"default": "{{{{ messages[0].role }}}}"}}, Path("x"), {{}}).render({HI!r}))
assert not {{'jinja2', 'tinygrad', 'tokenizers'}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "user\n", done.stderr


def test_any_character_goes_through():
    """Noncharacters and controls too, in what is given and in what the template itself writes."""
    odd = "\ufdd0\uffff\U0010fffe\0\x1b\x85\u2028\r\n\u202e\U0001f600é"
    assert template(odd + "{{ messages[0].content }}").render([{"role": "user", "content": odd}]) == (
        odd.replace("\r\n", "\n") + odd)


def test_values_that_json_does_not_have_reach_the_template():
    values = {"a": (1, [2]), "b": {1: "x", None: "y", (1, 2): "z"}, "c": float("inf"), "d": 10**400, "e": b"x",
              "f": float("nan")}
    text = "{{ a }} {{ b }} {{ c }} {{ d % 7 }} {{ e }} {{ f }} {{ d | string | length }}"
    assert template(text).render(HI, **values) == (
        f"(1, [2]) {{1: 'x', None: 'y', (1, 2): 'z'}} inf {10**400 % 7} <bytes> nan 401")
