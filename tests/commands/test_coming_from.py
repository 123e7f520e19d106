"""docs/coming-from.md: every command line, option, slash command and Python line in the column for this project."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from installed import ROOT, copy_of_the_project

from gemma4_core.checkpoint.hub import packaged_demo
from gemma4_core.cli import cli
from gemma4_core.cli import commands as registered

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
LINES = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def ours() -> list[str]:
    """The last column of every table."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [re.split(r"(?<!\\)\|", row.strip().strip("|"))[-1].replace("\\|", "|").strip() for row in rows]


def commands() -> list[str]:
    """The command lines of the tables, then those of the block."""
    cells = [cell for row in ours() for cell in re.findall(r"`(gemma4 [^`]*)`", row)]
    [block] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [*cells, *block.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to run in, with a small model in the Hugging Face cache that stands for E2B-it."""
    base = tmp_path_factory.mktemp("coming-from")
    folder = copy_of_the_project(base / "project")
    (folder / "train.jsonl").write_text(LINES * 2)
    (folder / "FOLDER").mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        (folder / "FOLDER" / name).write_text(LINES * 2)
    (folder / "in.jsonl").write_text('{"prompt": "Hi", "max_tokens": 4}\n')
    repository = base / "hub" / "models--google--gemma-4-E2B-it"
    shutil.copytree(packaged_demo(), repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(base / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(folder)
        yield folder


def run(line: str) -> str:
    """stdout of a command line of the page, which must succeed."""
    variables, words, stdin = {}, shlex.split(line), None
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if words[0] == "cat":
        stdin, words = Path(words[1]).read_text(encoding="utf-8"), words[words.index("|") + 1 :]
    more = ["--yes"] if words[1:3] == ["models", "rm"] else []
    more += ["-r", "1"] if words[1] == "bench" else []
    # an adapter of the last layer alone: gradients through all of them are nothing but minutes of tracing
    more += ["--lora-targets", "*language_model.layers.7.*"] if words[1] == "train" else []
    result = CliRunner().invoke(cli, [*words[1:], *more], input=stdin, env=variables, prog_name="gemma4")
    assert result.exit_code == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("plain_loops")
def test_every_command_line_runs(project: Path) -> None:
    lines = commands()
    assert len(lines) > 18
    lines.sort(key=lambda line: " rm " in line)  # the model is removed last
    for line in lines:
        assert run(line) or " rm " in line or "chat" in line, line
    assert "e2b-it" not in run("gemma4 models")


def test_every_option_and_slash_command_exists() -> None:
    from gemma4_plugins.commands.chat.repl import HELP
    from gemma4_plugins.commands.generate import generate_command
    from gemma4_plugins.commands.train.command import train_command

    contexts = [generate_command.make_context("generate", ["-m", "demo", "x"]),
                train_command.make_context("train", ["-m", "demo", "--data", "x.jsonl", "-o", "run"])]
    flags = {flag for context in contexts for param in context.command.get_params(context)
             for flag in param.opts + param.secondary_opts}
    named = {word for row in ours() for cell in re.findall(r"`([^`]*)`", row) if not cell.startswith("gemma4")
             for word in cell.split() if word.startswith("-")}
    assert len(named) > 20 and named <= flags
    slashes = {word for row in ours() for word in re.findall(r"`/([a-z]+)", row)}
    assert slashes <= {usage.split()[0].lstrip("/") for usage, _ in HELP} | {"image", "bye"}
    known = {*registered.commands()}
    assert {line.split("gemma4 ")[1].split()[0] for line in commands()} <= known


@pytest.mark.parametrize(("page", "shown"), [("coming-from", "(1, "), ("chat", "3 (2, 192)")])
def test_the_python_lines_run(project: Path, page: str, shown: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.replace("e2b-it", "demo"), {})
    assert shown in printed.getvalue()
