"""The command lines of README.md and of the demo, pasted as they stand into a fresh copy with a fresh home."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from installed import ROOT, Shell, shell_fixture  # noqa: F401

from gemma4_core.checkpoint.hub import packaged_demo

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str, number: int = 0, language: str = "sh") -> str:
    """A code block of a section."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture(name="cached_model")
def cached_model_fixture(shell: Shell) -> None:
    """A small model in the Hugging Face cache of the shell's home, where it stands for E2B-it."""
    hub = Path(shell.environment["HOME"]) / ".cache" / "huggingface" / "hub"
    repository = hub / "models--google--gemma-4-E2B-it"
    shutil.copytree(packaged_demo(), repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_line_can_be_pasted(shell: Shell, cached_model: None) -> None:
    tried = shell.run(block("Try it"))
    assert "\n46\n" in tried and "a large red circle below a small orange cross" in tried
    # what the demo printed: its first command line activates the environment, the others use it
    printed = re.findall(r"^  (gemma4 .*?|source .*?)(?:   .*)?$", tried, re.MULTILINE)
    assert printed[0].startswith("source ") and len(printed) > 7
    # the server comes with a package of its own, and would not end
    assert printed.pop().startswith("gemma4 serve -m demo") and "pip install -e plugins/gemma4-serve" in tried
    shell.run("\n".join(printed))
    used = shell.run("source .venv/bin/activate\n" + block("Use it"))
    assert "models/e2b-it-int8" in used and "e2b-it  " in used and "tokens/s" in used
    (shell.folder / "use.py").write_text(block("Use it", language="python"))
    assert shell.run("source .venv/bin/activate\npython use.py").strip()
    # the way without make leads to the same, here in the environment that make has made
    assert "(right)" in shell.run(block("Try it", 1))
