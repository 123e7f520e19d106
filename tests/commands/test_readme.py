"""The command lines of README.md and of the demo, pasted as they stand into a fresh copy with a fresh home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gemma4_core.checkpoint.hub import packaged_demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str, number: int = 0, language: str = "sh") -> str:
    """A code block of a section."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]


def copy_of_the_project(folder: Path) -> Path:
    """The files that belong to the project, without what tests and builds left beside them."""
    ignore = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs",
                                    "fuzz-findings")
    shutil.copytree(ROOT, folder, ignore=ignore, symlinks=True)
    return folder


class Shell:
    """bash with a fresh home and an empty environment of its own, in a copy of the project."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        home.mkdir()
        cache = os.environ.get("PIP_CACHE_DIR") or str(Path("~/.cache/pip").expanduser())
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG") or "pip" in name.lower()}
        path = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if ".venv" not in part)
        self.environment = kept | {"HOME": str(home), "PATH": path, "PIP_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"}

    def run(self, script: str) -> str:
        """stdout of a script; every line of it must succeed."""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=600, check=False,
        )
        assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which ``make demo`` ran, and in whose Hugging Face cache a small model stands for E2B-it."""
    base = tmp_path_factory.mktemp("readme")
    made = Shell(copy_of_the_project(base / "project"), base / "home")
    repository = base / "home" / ".cache" / "huggingface" / "hub" / "models--google--gemma-4-E2B-it"
    shutil.copytree(packaged_demo(), repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    return made


@pytest.mark.timeout(1200)
def test_every_line_can_be_pasted(shell: Shell) -> None:
    tried = shell.run(block("Try it"))
    assert "\n46\n" in tried and "a large red circle below a small orange cross" in tried
    # what the demo printed: its first command line activates the environment, the others use it
    printed = re.findall(r"^  (gemma4 .*?|source .*?)(?:   .*)?$", tried, re.MULTILINE)
    assert printed[0].startswith("source ") and len(printed) > 7
    shell.run("\n".join(printed))
    used = shell.run("source .venv/bin/activate\n" + block("Use it"))
    assert "models/e2b-it-int8" in used and "e2b-it  " in used and "tokens/s" in used
    (shell.folder / "use.py").write_text(block("Use it", language="python"))
    assert shell.run("source .venv/bin/activate\npython use.py").strip()
    # the way without make leads to the same
    by_hand = block("Try it", 1).replace(".venv", ".other")
    assert "(right)" in shell.run(by_hand)
