"""``gemma4 chat`` on a pipe: turns, commands, the cache, failures."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import FakeModel, Ran, failure, gemma4, parts

from gemma4_core.cli.interrupt import Interrupt
from gemma4_core.errors import InputError
from gemma4_core.generation.answers import Answer
from gemma4_core.generation.parts import Part
from gemma4_plugins.commands.chat.conversation import Conversation
from gemma4_plugins.commands.chat.line_editor import file_names, history_path
from gemma4_plugins.commands.chat.repl import Repl
from gemma4_plugins.commands.chat.settings import SAMPLING_OPTIONS


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel(lambda asked: parts(f"answer {len(fake.asked)}"))
    monkeypatch.setattr("gemma4_core.loading.load_pretrained", lambda name, **asked: fake)
    return fake


def chat(stdin: str | bytes, *args: object) -> Ran:
    return gemma4("chat", "-m", "m", *args, stdin=stdin)


def test_lines_of_a_pipe_are_turns_of_one_conversation(model: FakeModel) -> None:
    assert chat("one\n\n  \ntwo\n", "--system", "Be kind.") == Ran(0, "answer 1\nanswer 2\n", "")
    assert model.asked[1]["prompt"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "two"},
    ]


def test_all_turns_share_one_cache(model: FakeModel) -> None:
    chat("one\ntwo\n")
    assert len(model.caches) == 1 and all(asked["cache"] is model.caches[0] for asked in model.asked)


def test_sampling_and_length_are_those_of_the_command_line(model: FakeModel) -> None:
    chat("one\n", "--temperature", 0.5, "--max-new-tokens", 9, "--stop", "x", "--thinking")
    asked = model.asked[0]
    assert (asked["temperature"], asked["max_new_tokens"], asked["stop"], asked["thinking"]) == (0.5, 9, ("x",), True)


@pytest.mark.parametrize(("typed", "message"), [
    ('"""first\nsecond\n"""\n', "first\nsecond"),
    ('"""\n  indented\n\nlast"""\n', "  indented\n\nlast"),
    ('"""on one line"""\n', "on one line"),
    ('"""never closed\nat all', "never closed\nat all"),
    (' /not a command\n', " /not a command"),
    ("caf\u00e9 \U0001f9e6\r\n", "caf\u00e9 \U0001f9e6"),
])
def test_messages_of_several_lines(model: FakeModel, typed: str, message: str) -> None:
    assert chat(typed).code == 0
    assert model.asked[0]["prompt"][-1]["content"] == message


def test_bytes_that_are_no_text_do_not_end_it(model: FakeModel) -> None:
    assert chat(b"caf\xff\nmore\n").out == "answer 1\nanswer 2\n"


def test_help_names_every_command_and_goes_to_stderr(model: FakeModel) -> None:
    ran = chat("/help\n")
    assert ran.out == "" and ran.code == 0
    for name in ("/help", "/clear", "/system", "/thinking", "/stats", "/save FILE", "/exit", '"""'):
        assert name in ran.err


def test_clear_forgets_turns_and_cache_but_not_the_system_prompt(model: FakeModel) -> None:
    chat("one\n/clear\ntwo\n", "--system", "S")
    assert model.asked[1]["prompt"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "two"}]
    assert model.caches[0].resets == 1


def test_system_and_thinking_can_be_changed(model: FakeModel) -> None:
    ran = chat("/system\n/system Be a pirate.\n/thinking on\none\n/thinking off\ntwo\n")
    assert "(none)" in ran.err and "Be a pirate." in ran.err
    assert model.asked[0]["prompt"][0] == {"role": "system", "content": "Be a pirate."}
    assert [asked["thinking"] for asked in model.asked] == [True, False]


def test_stats_are_those_of_the_last_answer(model: FakeModel) -> None:
    ran = chat("/stats\none\n/stats\n")
    assert "no answer yet" in ran.err and "answer 2 tokens" in ran.err
    assert "answer 2 tokens" in chat("one\n", "--stats").err


def test_exit_ends_before_the_next_line(model: FakeModel) -> None:
    assert chat("one\n/exit\ntwo\n").out == "answer 1\n"


def test_save_writes_the_conversation_whole(model: FakeModel, tmp_path: Path) -> None:
    target = tmp_path / "talk of us.json"
    assert chat(f'one\n/save "{target}"\n').code == 0
    saved = json.loads(target.read_text())
    assert saved["model"] == "/models/fake"
    assert saved["messages"] == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "answer 1"}]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize(("line", "words"), [
    ("/sing", "/sing"), ("/save", "/save"), ("/save /no/such/folder/x", "/no/such/folder/x"),
    ("/thinking maybe", "maybe"), ("/image x.png", "/image x.png"), ("/a\x1bb", r"/a\x1bb"),
])
def test_a_bad_command_ends_a_pipe_with_one_line(model: FakeModel, line: str, words: str) -> None:
    assert words in failure("chat", "-m", "m", stdin=f"{line}\nnever asked\n")
    assert not model.asked


def test_an_answer_that_fails_is_taken_back(model: FakeModel) -> None:
    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        raise InputError("the prompt has 9 tokens, 1 more than the context of 8")
        yield

    talk = Conversation(model, {})  # type: ignore[arg-type]
    model.answer = answer
    with pytest.raises(InputError):
        list(talk.ask("one", Answer()))
    talk.drop()
    assert talk.turns == []
    assert "1 more than the context" in failure("chat", "-m", "m", stdin="one\n")


def test_tool_calls_stay_in_the_conversation(model: FakeModel) -> None:
    call = {"name": "f", "arguments": {}}
    model.answer = lambda asked: iter([Part("{}", "tool_call", token=1, tool_call=call), *parts(finish="tool_call")])
    chat("one\ntwo\n")
    assert model.asked[1]["prompt"][1]["tool_calls"] == [{"type": "function", "function": call}]


def tower(kind: str, placed: str = "before") -> Any:
    option = SimpleNamespace(flag=f"--{kind}", keyword=kind)
    return SimpleNamespace(name=kind, media_option=option, placeholder=f"<|{kind}|>", placed=placed)


def test_files_go_with_the_next_message_in_their_places(model: FakeModel, tmp_path: Path) -> None:
    model.tower_specs = [tower("image"), tower("audio", "after")]
    for name in ("a.png", "b.png", "c.wav"):
        (tmp_path / name).write_bytes(b"x")
    a, b, c = (str(tmp_path / name) for name in ("a.png", "b.png", "c.wav"))
    chat(f"/image {a}\n/audio '{c}'\nlook\n/image {a}\n/image {b}\nfirst <|image|> then <|image|>!\nplain\n")
    contents = [message["content"] for message in model.asked[2]["prompt"] if message["role"] == "user"]
    assert contents == [
        [{"type": "image", "path": a}, {"type": "text", "text": "look"}, {"type": "audio", "path": c}],
        [
            {"type": "text", "text": "first "}, {"type": "image", "path": a}, {"type": "text", "text": " then "},
            {"type": "image", "path": b}, {"type": "text", "text": "!"},
        ],
        "plain",
    ]


def test_files_must_exist_and_fit_the_placeholders(model: FakeModel, tmp_path: Path) -> None:
    model.tower_specs = [tower("image")]
    (tmp_path / "a.png").write_bytes(b"x")
    assert "/no/such.png: no such file" in failure("chat", "-m", "m", stdin="/image /no/such.png\n")
    assert "give the path" in failure("chat", "-m", "m", stdin="/image\n")
    ran = chat(f"/image {tmp_path / 'a.png'}\n<|image|> <|image|>\n")
    assert ran.code == 1 and "2 <|image|>" in ran.err and "1 files" in ran.err and not model.asked


def test_the_first_ctrl_c_asks_and_the_second_insists(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt("stopping") as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and capfd.readouterr().err == "\nstopping\n"


def test_ctrl_c_keeps_half_an_answer_and_goes_on(model: FakeModel) -> None:
    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        yield Part("half", token=1)
        if len(model.asked) == 1:
            signal.raise_signal(signal.SIGINT)
        yield Part(" whole", token=2)
        yield Part(" never", token=3, finish_reason=None)
        yield from parts()

    model.answer = answer
    ran = chat("one\ntwo\n")
    assert ran.code == 0 and ran.out == "half whole\nhalf whole never\n" and "(stopped)" in ran.err
    assert model.asked[1]["prompt"][1] == {"role": "assistant", "content": "half whole"}
    assert model.invalidated == 0


def test_a_second_ctrl_c_drops_the_cache(model: FakeModel) -> None:
    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        yield Part("half", token=1)
        if len(model.asked) == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        yield from parts()

    model.answer = answer
    assert chat("one\ntwo\n").out == "half\nhalf\n"
    assert model.invalidated == 1 and len(model.caches) == 2 and model.asked[1]["cache"] is model.caches[1]


def test_history_follows_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "gemma4" / "chat_history"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert history_path() == Path("~/.local/state/gemma4/chat_history").expanduser()


def test_a_real_model_reuses_its_cache_and_answers_as_from_a_cold_start(tmp_path: Path) -> None:
    from tiny_model import write_tiny_checkpoint

    from gemma4_core import load_pretrained

    folder = write_tiny_checkpoint(tmp_path / "model")
    args = ["--modality", "text", "--max-new-tokens", 5]
    ran = gemma4("chat", "-m", folder, *args, "--stats", stdin=f"Hello there\nAgain\n/save {tmp_path / 'talk.json'}\n")
    assert ran.code == 0, ran
    first, second = [line for line in ran.err.splitlines() if line.startswith("prompt ")]
    assert "reused" not in first
    assert int(re.findall(r"\((\d+) reused\)", second)[0]) > 10
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert ran.out == "".join(f"{message['content']}\n" for message in messages if message["role"] == "assistant")
    model = load_pretrained(folder, modalities=("text",))
    cold = model.stream_generate(messages[:3], max_new_tokens=5)
    assert "".join(part.text for part in cold) == messages[3]["content"]


# ------------------------------------------------------------------------------------------------ going back


def test_regenerate_asks_the_last_message_again(model: FakeModel) -> None:
    ran = chat("one\ntwo\n/regenerate\nthree\n")
    assert ran.out == "answer 1\nanswer 2\nanswer 3\nanswer 4\n"
    assert model.asked[2]["prompt"] == model.asked[1]["prompt"]
    assert [turn["content"] for turn in model.asked[3]["prompt"]] == ["one", "answer 1", "two", "answer 3", "three"]


def test_undo_takes_back_a_message_and_its_answer(model: FakeModel) -> None:
    ran = chat("one\ntwo\n/undo\nthree\n")
    assert "(removed: two)" in ran.err
    assert [turn["content"] for turn in model.asked[2]["prompt"]] == ["one", "answer 1", "three"]


@pytest.mark.parametrize("command", ["/regenerate", "/undo"])
def test_there_is_nothing_to_go_back_to(model: FakeModel, command: str) -> None:
    assert f"{command}: there is no message yet" in failure("chat", "-m", "m", stdin=f"{command}\n")


def test_a_regeneration_that_fails_leaves_the_conversation(model: FakeModel) -> None:
    talk = Conversation(model, {})  # type: ignore[arg-type]
    repl = Repl(talk, SimpleNamespace())  # type: ignore[arg-type]
    repl.handle("one")
    before = list(talk.turns)

    def broken(asked: dict[str, Any]) -> Iterator[Part]:
        raise RuntimeError("device lost")
        yield

    model.answer = broken
    with pytest.raises(RuntimeError):
        repl.handle("/regenerate")
    assert talk.turns == before


# ------------------------------------------------------------------------------------------------ /set


def test_set_changes_sampling(model: FakeModel) -> None:
    chat("/set temperature 0.5\n/set top-k 7\n/set max-tokens 9\n/set stop END\none\n"
         "/set temperature off\n/set top_k off\n/set stop off\n/set n off\ntwo\n")
    first, second = model.asked
    assert (first["temperature"], first["top_k"], first["max_new_tokens"], first["stop"]) == (0.5, 7, 9, ("END",))
    assert (second["temperature"], second["top_k"], second["max_new_tokens"], second["stop"]) == (0.0, None, 1024, ())


def test_set_shows_everything_without_a_name(model: FakeModel) -> None:
    lines = chat("/set\n").err.splitlines()
    assert [line.split()[0] for line in lines] == list(SAMPLING_OPTIONS)
    assert chat("/set seed 3\n").err == "seed                3\n"


@pytest.mark.parametrize(("typed", "words"), [
    ("/set heat 1", "/set heat: no such option"), ("/set temprature 1", "did you mean 'temperature'?"),
    ("/set top-p 2", "'2' is not a finite number from 0 to 1"), ("/set seed", "/set seed: give a value"),
    ("/set seed x", "'x' is not a whole number"),
])
def test_set_refuses_what_the_command_line_refuses(model: FakeModel, typed: str, words: str) -> None:
    assert words in failure("chat", "-m", "m", stdin=f"{typed}\n")


# ------------------------------------------------------------------------------------------------ /load


def test_load_goes_on_with_a_saved_conversation(model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    chat(f"one\n/save {path}\n", "--system", "Be kind.")
    ran = chat(f"lost\n/load {path}\ntwo\n")
    assert "loaded 3 messages" in ran.err
    assert [turn["content"] for turn in model.asked[-1]["prompt"]] == ["Be kind.", "one", "answer 1", "two"]
    assert model.caches[-1].resets == 1


@pytest.mark.parametrize(("content", "words"), [
    ("{", "not a JSON file"), ("[1]", "messages[0]"), ('{"messages": 3}', "an object with messages"),
    ('{"messages": [{"role": "robot", "content": "x"}]}', "messages[0]"),
    ('{"messages": [{"role": "user", "content": [3]}]}', "messages[0]"), ("[" * 99999, "not a JSON file"),
])
def test_load_refuses_what_is_no_conversation(model: FakeModel, tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    line = failure("chat", "-m", "m", stdin=f"/load {path}\n")
    assert words in line and "talk.json" in line
    assert "no-such.json" in failure("chat", "-m", "m", stdin="/load no-such.json\n")


# ------------------------------------------------------------------------------------------------ Tab


def test_tab_offers_commands_options_and_files(model: FakeModel, tmp_path: Path) -> None:
    repl = Repl(Conversation(model, {}), SimpleNamespace())  # type: ignore[arg-type]
    assert repl.complete("", "/re") == ["/regenerate"]
    assert {"/save", "/set", "/stats", "/system"} == set(repl.complete("", "/s") or [])
    assert repl.complete("/set ", "top") == ["top_k", "top_p"]
    assert repl.complete("/thinking ", "o") == ["on", "off"]
    assert repl.complete("/load ", "x") is None and repl.complete("hello ", "x") == []
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    assert file_names(f"{tmp_path}/f") == [f"{tmp_path}/file.txt", f"{tmp_path}/folder/"]


def test_stats_of_a_stopped_answer(model: FakeModel) -> None:
    talk = Conversation(model, {})  # type: ignore[arg-type]
    answer = Answer()
    parts = talk.ask("one", answer)
    next(parts)
    parts.close()  # as Ctrl-C does
    talk.keep(answer)
    assert answer.finish_reason is None and talk.stats is not None and talk.stats.prompt_tokens == 7
