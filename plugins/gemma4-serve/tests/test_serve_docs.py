"""docs/serving.md is true: its options, its routes, and what of its recipes can be run."""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np
import pytest
from gemma4_serve.command import serve_command
from gemma4_serve.routes import audio, chat, completions, embeddings, health, messages, models, responses, tokens
from serve_tools import Live, demo_model, script

from gemma4_plugins.commands.demo import draw_picture

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text()
SHARED = (ROOT / "docs" / "cli.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_option_is_described() -> None:
    for param in serve_command.params:
        if isinstance(param, click.Option):
            flags = "|".join(map(re.escape, param.opts + param.secondary_opts))
            assert re.search(rf"[ `[]({flags})\b", PAGE + SHARED), param.opts


def test_every_route_is_named(live: Live) -> None:
    families = (audio, chat, completions, embeddings, health, messages, models, responses, tokens)
    paths = {route.path for family in families for route in family.routes(None)}  # type: ignore[arg-type, attr-defined]
    short = {path.removeprefix("/v1") for path in paths}
    assert {path for path in short if path not in PAGE} <= {"/models/{id:path}", "/completions", "/responses"}


def test_the_commands_parse() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("gemma4 serve")]
    assert lines
    for line in lines:
        assert serve_command.make_context("serve", line.split()[2:]).params


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_recipes_run(
    live: Live, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_picture(tmp_path / "picture.png", np.random.default_rng(1))
    monkeypatch.chdir(tmp_path)
    code = code.replace("http://127.0.0.1:8000", live.url)
    with script(monkeypatch, "It is sunny."):
        exec(compile(code, "docs/serving.md", "exec"), {})
    assert "sunny" in capsys.readouterr().out or "ServePlugin" in code
    assert demo_model().adapters is None
