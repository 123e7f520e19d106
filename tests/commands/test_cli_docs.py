"""The pages about the commands name every command, option, slash command and example that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from gemma4_core.cli.commands import commands, is_ours, load_command
from gemma4_plugins.commands.chat.conversation import Conversation
from gemma4_plugins.commands.chat.repl import Repl

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
CHAT = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, entry in commands().items() if is_ours(entry)])
def test_every_command_and_option_is_described(name: str) -> None:
    assert f"| `{name}` |" in CLI
    pages = CLI + CHAT if name == "chat" else CLI
    for param in load_command(commands()[name]).params:
        if isinstance(param, click.Option) and not param.hidden:
            flags = "|".join(map(re.escape, param.opts + param.secondary_opts))
            assert re.search(rf"[ `[]({flags})\b", pages), param.opts


def test_every_slash_command_is_described() -> None:
    model = SimpleNamespace(make_cache=lambda: None, tower_specs=[])
    conversation = Conversation(model, {})  # type: ignore[arg-type]
    known = Repl(conversation, SimpleNamespace()).commands  # type: ignore[arg-type]
    described = set(re.findall(r"`/([a-z]+)", CHAT))
    assert set(known) - {"?", "quit", "bye"} <= described
    assert described <= {*known, "image", "audio"}


def test_examples_parse() -> None:
    pages = CLI + CHAT + (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", pages, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [line.split("| gemma4 ")[-1].removeprefix("gemma4 ") for line in lines
             if line.startswith("gemma4 ") or "| gemma4 " in line]
    assert len(found) > 8
    for line in found:
        name, *args = shlex.split(line)
        command = load_command(commands()[name])
        assert command.make_context(name, args).params, line


def test_the_links_of_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs" / name for name in ("cli.md", "chat.md", "origin.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
