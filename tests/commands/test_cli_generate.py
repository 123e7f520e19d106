"""``gemma4 generate``: what is asked of the model, what goes where, and what is refused before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_tools import FakeModel, Ran, failure, gemma4, parts, usage
from click.testing import CliRunner
from tiny_model import write_tiny_checkpoint

from gemma4_core.cli.commands import commands, is_ours
from gemma4_core.config import GenerationConfig
from gemma4_core.generation.parts import Part

FLAT_TOOLS = Path(__file__).parents[1] / "data/cases/flat-tools"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A model that ``load_pretrained`` gives to whoever asks; ``loaded`` has what it was asked with."""
    fake = FakeModel()

    def load(name: str, *, check: Any, **asked: Any) -> FakeModel:
        fake.loaded = {"name": name, **asked}  # type: ignore[attr-defined]
        check(fake.processor)
        return fake

    monkeypatch.setattr("gemma4_core.loading.load_pretrained", load)
    return fake


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a weight is a failure of the test."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("gemma4_core.loading.read_text", read)


def ask(*args: object, stdin: str | bytes | None = None) -> Ran:
    return gemma4("generate", "-m", "m", *args, stdin=stdin)


# ---------------------------------------------------------------------------------------------------- streams


def test_stdout_has_the_answer_and_stderr_nothing(model: FakeModel) -> None:
    assert ask("--prompt", "Hi") == Ran(0, "Hello world\n", "")


def test_an_answer_that_ends_its_line_gets_no_second_one(model: FakeModel) -> None:
    model.answer = lambda asked: parts("line\n")
    assert ask("--prompt", "Hi").out == "line\n"


def test_statistics_on_stderr_when_asked_for(model: FakeModel) -> None:
    ran = ask("--prompt", "Hi", "--stats")
    assert ran.out == "Hello world\n" and ran.err.count("\n") == 1
    for words in ("prompt 7 tokens (3 reused)", "(8 tok/s)", "answer 2 tokens", "(4 tok/s)", "12.0 MB", "stop"):
        assert words in ran.err


def test_thinking_is_no_part_of_the_answer(model: FakeModel) -> None:
    model.answer = lambda asked: parts("Let me see", "Yes.", kinds=("thinking", "text"))
    assert ask("--prompt", "Hi", "--thinking") == Ran(0, "Yes.\n", "")
    assert model.asked[0]["thinking"] is True
    found = json.loads(ask("--prompt", "Hi", "--json").out)
    assert (found["text"], found["thinking"]) == ("Yes.", "Let me see")


def test_tool_calls_are_lines_of_json(model: FakeModel, tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"x": 1}}

    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        yield Part("Calling.", token=3)
        yield Part(json.dumps(call), "tool_call", token=4, tool_call=call)
        yield from parts(finish="tool_call")

    model.answer = answer
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": {"name": "f"}}]))
    ran = ask("--prompt", "Hi", "--tools", tmp_path / "tools.json")
    assert ran.out == 'Calling.\n{"name": "f", "arguments": {"x": 1}}\n'
    assert model.asked[0]["tools"][0]["function"]["name"] == "f"
    found = json.loads(ask("--prompt", "Hi", "--json").out)
    assert found["finish_reason"] == "tool_call" and found["tool_calls"] == [call] and found["text"] == "Calling."


@pytest.mark.parametrize("name", ["t2", "t3", "t4", "t5"])
def test_flat_tools_are_accepted(model: FakeModel, name: str) -> None:
    """Declarations in a list of ``tools``, without ``function``, in MCP's form, after a byte order mark."""
    assert ask("--prompt", "Hi", "--tools", FLAT_TOOLS / f"{name}.json").code == 0
    [tool] = model.asked[0]["tools"]
    assert tool["type"] == "function" and {**tool["function"], "parameters": None} == {
        "name": "a", "description": "b", "parameters": None}


def test_flat_tools_without_a_function_are_refused_by_their_place(model: FakeModel) -> None:
    line = failure("generate", "-m", "m", "--prompt", "Hi", "--tools", FLAT_TOOLS / "t.json")
    assert "t.json: tools[0] lacks function" in line and "--raw" not in line and model.asked == []


def test_json_is_one_object(model: FakeModel) -> None:
    model.answer = lambda asked: parts("Grüße ", "\u2028\x1b")
    ran = ask("--prompt", "Hi", "--json")
    found = json.loads(ran.out)
    assert ran.err == "" and ran.out.count("\n") == 1
    assert list(found) == ["text", "tokens", "finish_reason", "prompt_tokens", "stats"]
    assert found["text"] == "Grüße \u2028\x1b" and found["tokens"] == [10, 11] and found["prompt_tokens"] == 7
    assert found["finish_reason"] == "stop" and found["stats"]["generation_tps"] == 4.0


def test_without_a_tokenizer_ids_come_out(model: FakeModel) -> None:
    model.tokenizer = None
    model.answer = lambda asked: (Part("", token=token) for token in (5, 7, 9))
    assert ask("--prompt-tokens", "2,106").out == "5,7,9\n"
    assert json.loads(ask("--prompt-tokens", "2,106", "--json").out)["text"] is None


def test_a_failure_in_the_middle_leaves_text_and_one_line(model: FakeModel) -> None:
    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        yield Part("So far", token=1)
        raise RuntimeError("CUDA out of memory")

    model.answer = answer
    ran = ask("--prompt", "Hi")
    assert (ran.code, ran.out) == (1, "So far") and ran.err.startswith("Error: RuntimeError: CUDA out of memory")
    assert failure("generate", "-m", "m", "--prompt", "Hi", "--json")


def test_ctrl_c_keeps_what_there_is_and_exits_130(model: FakeModel) -> None:
    def answer(asked: dict[str, Any]) -> Iterator[Part]:
        yield Part("So far", token=1)
        raise KeyboardInterrupt

    model.answer = answer
    ran = ask("--prompt", "Hi")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "So far\n", "")


# ---------------------------------------------------------------------------------------------------- what is asked


def test_a_prompt_goes_through_the_template(model: FakeModel) -> None:
    ask("--prompt", "Hi", "--system", "Be brief.")
    assert model.asked[0]["prompt"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    ]
    assert model.asked[0]["thinking"] is False and model.asked[0]["tools"] is None


def test_raw_and_template_less_prompts_go_as_they_are(model: FakeModel) -> None:
    ask("--prompt", " Once", "--raw")
    model.template = None
    ask("--prompt", " Once")
    assert [asked["prompt"] for asked in model.asked] == [" Once", " Once"]


@pytest.mark.parametrize("option", [("--system", "x"), ("--thinking",)])
def test_options_of_the_template_need_one(model: FakeModel, option: tuple[str, ...]) -> None:
    line = failure("generate", "-m", "m", "--prompt", "Hi", "--raw", *option)
    assert option[0] in line and "--raw" in line
    model.template = None
    assert "/models/fake has none" in failure("generate", "-m", "m", "--prompt", "Hi", *option)


def test_a_prompt_from_standard_input(model: FakeModel) -> None:
    ask("--prompt", "-", "--raw", stdin="from a pipe\n")
    assert model.asked[0]["prompt"] == "from a pipe\n"
    assert "not UTF-8" in failure("generate", "-m", "m", "--prompt", "-", stdin=b"\xff\xfe")


@pytest.mark.parametrize(("text", "ids"), [("2,106,1234", [2, 106, 1234]), (" 2, 3 4,", [2, 3, 4]), ("007", [7])])
def test_token_ids(model: FakeModel, text: str, ids: list[int]) -> None:
    ask("--prompt-tokens", text)
    assert model.asked[0]["prompt_tokens"] == ids and model.asked[0]["prompt"] is None


def test_what_is_loaded(model: FakeModel) -> None:
    ask("--prompt", "Hi", "--device", "CPU", "--beam", 2, "--beam-seconds", 30, "--format", "bf16",
        "--tokenizer", "raw", "--modality", "text,vision", "audio", "--context", 2048, "--ple", "disk",
        "--dtype", "float32")
    loaded = model.loaded  # type: ignore[attr-defined]
    assert loaded["name"] == "m" and loaded["device"] == "CPU" and (loaded["beam"], loaded["beam_seconds"]) == (2, 30.0)
    assert (loaded["format"], loaded["tokenizer"], loaded["ple"]) == ("bf16", "raw", "disk")
    assert loaded["modalities"] == ("text", "vision", "audio") and loaded["max_context"] == 2048
    assert loaded["dtype"] == "float32"
    ask("--prompt", "Hi")
    loaded = model.loaded  # type: ignore[attr-defined]
    assert loaded["modalities"] is None and loaded["dtype"] is None and loaded["device"] == "auto"


def test_beam_max_is_four_unless_the_environment_says_otherwise(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYGRAD_GEMMA_MAX_BEAM", raising=False)
    ask("--prompt", "Hi", "--beam", "max")
    assert model.loaded["beam"] == 4  # type: ignore[attr-defined]
    monkeypatch.setenv("TINYGRAD_GEMMA_MAX_BEAM", "7")
    ask("--prompt", "Hi", "--beam", "MAX")
    assert model.loaded["beam"] == 7  # type: ignore[attr-defined]
    monkeypatch.setenv("TINYGRAD_GEMMA_MAX_BEAM", "wide")
    assert "TINYGRAD_GEMMA_MAX_BEAM" in usage("generate", "-m", "m", "--prompt", "Hi", "--beam", "max")


def test_media_and_plugin_options_reach_the_model(model: FakeModel) -> None:
    ran = ask("--prompt", "Describe", "--image", "a.png", "-", "--image=b.png", "--image-tokens", 140,
              "--audio", "c.wav")
    assert ran.code == 0, ran.err
    assert model.asked[0]["images"] == ["a.png", "-", "b.png"] and model.asked[0]["audio"] == ["c.wav"]
    options = model.loaded["options"]  # type: ignore[attr-defined]
    assert options["image_tokens"] == 140 and "allow_urls" not in options
    ask("--prompt", "Describe", "--allow-urls")
    assert model.loaded["options"]["allow_urls"] is True  # type: ignore[attr-defined]


SAMPLES = GenerationConfig((1,), 0, 2, do_sample=True, temperature=0.8, top_k=64, top_p=0.95)
GREEDY = GenerationConfig((1,), 0, 2, temperature=0.6)


@pytest.mark.parametrize(("config", "args", "expected"), [
    (GREEDY, [], {"temperature": 0.0}),
    (SAMPLES, [], {"temperature": 0.8, "top_k": 64, "top_p": 0.95}),
    (SAMPLES, ["--temperature", "0"], {"temperature": 0.0, "top_k": 64}),
    (SAMPLES, ["--top-k", "5", "--seed", "3"], {"temperature": 0.8, "top_k": 5, "top_p": 0.95, "seed": 3}),
    (GREEDY, ["--temp", "1.5"], {"temperature": 1.5, "top_k": None}),
    (GREEDY, ["--top-k", "5"], {"temperature": 0.6, "top_k": 5}),
    (GREEDY, ["--seed", "5"], {"temperature": 0.0, "seed": 5}),
    (GREEDY, ["--repetition-penalty", "1.2", "--min-p", "0"], {"temperature": 0.0, "repetition_penalty": 1.2}),
])
def test_sampling_comes_from_the_folder_unless_given(
    model: FakeModel, config: GenerationConfig, args: list[str], expected: dict[str, Any]
) -> None:
    model.generation_config = config
    assert ask("--prompt", "Hi", *args).code == 0
    assert {name: model.asked[0].get(name) for name in expected} == expected


def test_length_and_stop_strings(model: FakeModel) -> None:
    ask("--prompt", "Hi", "--max-new-tokens", 5, "--stop", "a", "--stop", "-b")
    assert model.asked[0]["max_new_tokens"] == 5 and tuple(model.asked[0]["stop"]) == ("a", "-b")
    ask("--prompt", "Hi", "-n", 6)
    assert model.asked[1]["max_new_tokens"] == 6


def test_the_alias_is_the_same_command(model: FakeModel) -> None:
    from gemma4_plugins.commands.generate import generate_command

    args = ["--model-dir", "m", "--prompt", "Hi"]
    ran = CliRunner().invoke(generate_command, args, prog_name="tinygrad-gemma")
    assert (ran.exit_code, ran.stdout) == (0, "Hello world\n")
    ran = CliRunner().invoke(generate_command, ["--bogus"], prog_name="tinygrad-gemma")
    assert ran.exit_code == 2 and ran.stderr.startswith("Usage: tinygrad-gemma ") and "'--bogus'" in ran.stderr


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("args", "culprit"), [
    ([], "an argument, --prompt, -f or --prompt-tokens: none was given"),
    (["--prompt", "a", "--prompt-tokens", "2"], "not both --prompt 'a' and --prompt-tokens '[2]'"),
    (["two", "words"], "('two', 'words', …): put the prompt in quotes"),
    (["a", "-f", "file"], "not both the argument 'a' and -f 'file'"),
    (["--prompt", "a", "--max-new-tokens", "-3"], "'-3'"),
    (["--prompt", "a", "--max-new-tokens", "0"], "'0'"),
    (["--prompt", "a", "--max-new-tokens", "9" * 40], "'99999"),
    (["--prompt", "a", "--max-new-tokens", "9" * 6000], "'99999"),
    (["--prompt", "a", "--max-new-tokens", "1_0"], "'1_0'"),
    (["--prompt", "a", "--max-new-tokens", "٣"], "'٣'"),
    (["--prompt", "a", "--context", "0"], "--context"),
    (["--prompt", "a", "--temperature", "nan"], "'nan'"),
    (["--prompt", "a", "--temperature", "-0.1"], "'-0.1'"),
    (["--prompt", "a", "--temperature", "inf"], "'inf'"),
    (["--prompt", "a", "--temperature", "warm"], "'warm'"),
    (["--prompt", "a", "--top-p", "1.5"], "'1.5'"),
    (["--prompt", "a", "--min-p", "2"], "--min-p"),
    (["--prompt", "a", "--top-k", "-1"], "--top-k"),
    (["--prompt", "a", "--repetition-penalty", "0"], "--repetition-penalty"),
    (["--prompt", "a", "--seed", "-1"], "--seed"),
    (["--prompt", "a", "--seed", str(1 << 32)], "--seed"),
    (["--prompt", "a", "--beam", "wide"], "'wide'"),
    (["--prompt", "a", "--beam", "-1"], "'-1'"),
    (["--prompt", "a", "--beam-seconds", "nan"], "--beam-seconds"),
    (["--prompt", "a", "--ple", "moon"], "'moon'"),
    (["--prompt", "a", "--dtype", "int4"], "'int4'"),
    (["--prompt", "a", "--image-tokens", "13"], "'13'"),
    (["--prompt", "a", "--bogus"], "'--bogus'"),
    (["--prompt", "a", "left over"], "left over"),
    (["--prompt", "a", "--bo\ngus"], r"--bo\ngus"),
    (["--prompt-tokens", "2,nan"], "'nan'"),
    (["--prompt-tokens", "2,1.5"], "'1.5'"),
    (["--prompt-tokens", "2", "--system", "x"], "--system"),
    (["--prompt", "-", "--image", "-"], "--image and --prompt"),
])
def test_usage_errors_name_the_culprit(model: FakeModel, args: list[str], culprit: str) -> None:
    assert culprit in usage("generate", "-m", "m", *args)
    assert not model.asked


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch, model: FakeModel) -> None:
    monkeypatch.delenv("GEMMA4_MODEL_DIR", raising=False)
    assert "--model-dir" in usage("generate", "--prompt", "a")
    monkeypatch.setenv("GEMMA4_MODEL_DIR", "from the environment")
    assert gemma4("generate", "--prompt", "a").code == 0
    assert model.loaded["name"] == "from the environment"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("args", "words"), [
    (["--prompt", ""], ["--prompt ''", "empty"]),
    (["--prompt", " \n"], ["--prompt", "empty"]),
    (["--prompt", "", "--raw"], ["empty"]),
    (["--prompt-tokens", ""], ["--prompt-tokens", "empty"]),
    (["--prompt-tokens", "2,512"], ["--prompt-tokens 512", "512 ids, 0 to 511"]),
    (["--prompt-tokens=-1"], ["--prompt-tokens -1", "0 to 511"]),
    (["--prompt-tokens", "2," + "9" * 29], ["9" * 29]),
    (["--prompt-tokens", ",".join(["2"] * 4100)], ["4100 tokens, 4 more than the context of 4096"]),
    (["--prompt", "word " * 200, "--context", "32"], ["more than the context of 32", "--context"]),
    (["--prompt", "a", "--stop", ""], ["--stop", "empty"]),
    (["--prompt", "a", "--device", "abacus"], ["--device 'abacus'", "cpu"]),
    (["--prompt", "a", "--format", "gguf"], ["--format 'gguf'", "bf16"]),
    (["--prompt", "a", "--tokenizer", "morse"], ["--tokenizer 'morse'", "huggingface"]),
    (["--prompt", "a", "--modality", "smell"], ["smell", "vision"]),
    (["--prompt", "a", "--modality", "text,smell"], ["smell", "vision"]),
    (["--prompt", "a", "--tokenizer", "raw"], ["needs a tokenizer"]),
    (["--prompt-tokens", "2", "--tokenizer", "raw", "--stop", "x"], ["--stop 'x'", "needs a tokenizer"]),
    (["--prompt", "Describe <|image|> and <|image|>.", "--image", "x.png"], ["2 <|image|>", "1 image"]),
    (["--prompt", "Describe <|image|>."], ["<|image|>", "0 image"]),
    (["--prompt", "a", "--image", "/no/such.png"], ["/no/such.png"]),
    (["--prompt", "a", "--image", "x.png", "--modality", "text"], ["x.png", "--modality"]),
    (["--prompt", "a", "--tools", "/no/tools.json"], ["--tools /no/tools.json", "No such file"]),
])
def test_failures_before_a_weight_is_read(
    checkpoint: Path, unloadable: None, args: list[str], words: list[str]
) -> None:
    line = failure("generate", "-m", checkpoint, *args)
    assert all(word in line for word in words), line


def test_text_that_is_no_unicode_is_refused(checkpoint: Path, unloadable: None) -> None:
    assert "not UTF-8" in failure("generate", "-m", checkpoint, "--prompt", "a\udcff")


def test_tools_that_are_no_list_are_refused(checkpoint: Path, unloadable: None, tmp_path: Path) -> None:
    for content in ("{", "3", '["x"]', "[" * 5000):
        path = tmp_path / "tools.json"
        path.write_text(content)
        assert "tools.json" in failure("generate", "-m", checkpoint, "--prompt", "a", "--tools", path)


@pytest.mark.parametrize(("content", "words"), [
    (None, "no config.json"), ("{", "not valid JSON"), ("[]", "object"), ('{"model_type": "llama"}', '"llama"'),
])
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    line = failure("generate", "-m", tmp_path, "--prompt", "a")
    assert words in line and str(tmp_path) in line


@pytest.mark.parametrize("name", ["/no/such/folder", "a\nb", "x" * 3000, "\x00", "nobody/nothing"])
def test_a_model_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shown = name[:40].replace("\n", r"\n").replace("\x00", r"\x00")
    line = failure("generate", "-m", name, "--prompt", "a").replace(r"\u0000", r"\x00")
    assert shown in line


def test_a_truncated_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300_000])
    assert "model.safetensors" in failure("generate", "-m", tmp_path / "cut", "--prompt", "a")


@pytest.mark.parametrize(("template", "words"), [
    ("{{ raise_exception('no system please') }}", "no system please"),
    ("{{ ''.__class__.__mro__ }}", "sandbox"),
    ("{% for", "jinja"),
])
def test_a_template_that_fails(
    checkpoint: Path, unloadable: None, tmp_path: Path, template: str, words: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    line = failure("generate", "-m", tmp_path / "model", "--prompt", "a")
    assert words in line and "chat_template.jinja" in line


# ---------------------------------------------------------------------------------------------------- for real


def test_a_checkpoint_answers_the_same_in_every_form(checkpoint: Path) -> None:
    args = ["generate", "-m", checkpoint, "--prompt", "Hello", "--max-new-tokens", 6, "--modality", "text"]
    text, found = gemma4(*args), json.loads(gemma4(*args, "--json").out)
    assert text == Ran(0, found["text"] + "\n", "") and len(found["tokens"]) == 6
    assert found["finish_reason"] == "length" and found["stats"]["generated_tokens"] == 6
    bare = json.loads(gemma4(*args[:3], "--prompt-tokens", "2,106", "--tokenizer", "raw", "-n", 3, "--json").out)
    assert bare["text"] is None and len(bare["tokens"]) == 3 and bare["prompt_tokens"] == 2


# ---------------------------------------------------------------------------------------------------- prompts


def test_the_prompt_is_an_argument_an_option_a_file_or_a_pipe(model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffHi there".encode())
    ways: list[tuple[list[Any], bytes | None]] = [
        (["Hi there"], None), (["--prompt", "Hi there"], None), (["-p", "Hi there"], None), (["-f", path], None),
        (["--file", path], None), (["-"], b"Hi there"), (["--prompt", "-"], b"Hi there"), (["-f", "-"], b"Hi there"),
        ([], b"Hi there"), ([], "\ufeffHi there".encode()), (["--", "Hi there"], None),
    ]
    for args, stdin in ways:
        assert ask(*args, stdin=stdin).code == 0, args
        assert model.asked.pop()["prompt"] == [{"role": "user", "content": "Hi there"}], args


def test_a_prompt_after_the_values_of_a_media_option(model: FakeModel, tmp_path: Path) -> None:
    picture = tmp_path / "a photo.png"
    picture.write_bytes(b"")
    assert ask("--image", picture, "What is this?").code == 0
    asked = model.asked.pop()
    assert asked["images"] == [str(picture)] and asked["prompt"][-1]["content"] == "What is this?"
    # a file whose name has white space is a file, and a name without any is one that is missing, not a prompt
    assert "none was given" in usage("generate", "-m", "m", "--image", "x.png", picture)
    assert "none was given" in usage("generate", "-m", "m", "--image", "x.png", "mistyped.png")


def test_a_prompt_file_that_cannot_be_read(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert f"-f {tmp_path / 'bytes'}" in failure("generate", "-m", "m", "-f", tmp_path / "bytes")
    assert "-f /no/such: No such file" in failure("generate", "-m", "m", "-f", "/no/such")
    assert f"-f {tmp_path}: Is a directory" in failure("generate", "-m", "m", "-f", tmp_path)


def test_without_streaming_the_answer_comes_whole(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("gemma4_core.cli.answers.write", written.append)
    assert ask("Hi", "--no-stream").code == 0 and written == ["Hello world\n"]
    written.clear()
    assert ask("Hi").code == 0 and written == ["Hello", " world", "\n"]


def test_quiet_and_verbose(model: FakeModel) -> None:
    assert ask("Hi", "--quiet") == Ran(0, "Hello world\n", "")
    lines = ask("Hi", "--verbose").err.splitlines()
    assert len(lines) == 2 and "bf16 on fake" in lines[0] and "answer 2 tokens" in lines[1]
    assert len(ask("Hi", "--quiet", "--stats").err.splitlines()) == 1


# ------------------------------------------------------------------------------------------------ environment


def test_options_read_the_environment(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_MODEL", "somewhere")
    monkeypatch.setenv("GEMMA4_DEVICE", "cpu")
    monkeypatch.setenv("GEMMA4_MAX_TOKENS", "7")
    monkeypatch.setenv("GEMMA4_STOP", "one two\nthree")
    monkeypatch.setenv("GEMMA4_THINKING", "1")
    monkeypatch.setenv("GEMMA4_IMAGE_TOKENS", "70")
    assert gemma4("generate", "Hi").code == 0
    asked = model.asked.pop()
    assert asked["max_new_tokens"] == 7 and asked["stop"] == ("one two", "three") and asked["thinking"] is True
    loaded = model.loaded  # type: ignore[attr-defined]
    assert (loaded["name"], loaded["device"], loaded["options"]["image_tokens"]) == ("somewhere", "cpu", 70)
    assert gemma4("generate", "Hi", "-m", "other", "-n", "3").code == 0
    assert model.asked.pop()["max_new_tokens"] == 3 and model.loaded["name"] == "other"  # type: ignore[attr-defined]


def test_a_wrong_value_in_the_environment_names_the_variable(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA4_MAX_NEW_TOKENS", "many")
    assert "GEMMA4_MAX_NEW_TOKENS" in (line := usage("generate", "-m", "m", "Hi")) and "'many'" in line


def test_a_typed_prompt_wins_over_one_in_the_environment(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_PROMPT", "from afar")
    assert ask("typed").code == 0 and model.asked.pop()["prompt"][-1]["content"] == "typed"
    assert ask().code == 0 and model.asked.pop()["prompt"][-1]["content"] == "from afar"


# ------------------------------------------------------------------------------------------------ other packages


def test_an_option_of_a_package_that_is_not_installed_names_it(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma4_core.plugins.separate_packages.installed", lambda package: False)
    known = commands()
    monkeypatch.setattr(
        "gemma4_core.cli.group.commands", lambda: {name: entry for name, entry in known.items() if is_ours(entry)}
    )
    for args, package in (
        (["train", "-m", "m", "--lorax"], None), (["fuse"], "gemma4-lora"), (["fuze"], None),
        (["info", "-m", "m", "--video", "x"], "gemma4-video"), (["info", "-m", "m", "--lora-rank", "8"], "gemma4-lora"),
    ):
        line = usage(*args)
        assert (f"pip install -e plugins/{package}" in line) if package else "plugins/" not in line, line
