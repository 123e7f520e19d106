"""Shell completion: what bash and zsh are offered for models, plugins, commands and files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
BASH = """
eval "$(_GEMMA4_COMPLETE=bash_source gemma4)"
compopt() { echo "files"; }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_gemma4_completion gemma4
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { :; }
_describe() { local items=(${(P)argv[-2]}); print -l -- ${items%%:*}; }
compadd() { local items=(${(P)argv[-1]}); print -l -- $items; }
_path_files() { print files; }
eval "$(_GEMMA4_COMPLETE=zsh_source gemma4)"
words=("$@"); CURRENT=$#
commands[gemma4]=1
_gemma4_completion
"""
SHELLS = {"bash": ["bash", "--noprofile", "--norc", "-c", BASH, "bash"], "zsh": ["zsh", "-f", "-c", ZSH, "zsh"]}


def offered(shell: str, *words: str) -> list[str]:
    """What is offered for the last of these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(
        [*SHELLS[shell], "gemma4", *words], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert ran.stderr == "", ran.stderr
    return [line for line in ran.stdout.splitlines() if line]


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_commands_models_plugins_and_files_are_offered(shell: str) -> None:
    assert {"models", "demo", "generate"} <= set(offered(shell, ""))
    assert offered(shell, "gen") == ["generate"]
    assert offered(shell, "models", "r") == ["rm"]
    assert offered(shell, "generate", "-m", "dem") == ["demo"]
    assert {"cpu", "cuda", "cl"} <= set(offered(shell, "generate", "--device", "c"))
    assert offered(shell, "generate", "--format", "int") == ["int8"]
    assert offered(shell, "train", "--optimizer", "ad") == ["adamw"]
    assert "text,vision" in offered(shell, "generate", "--modality", "text,vi")
    assert "files" in offered(shell, "generate", "--tools", "/etc/ho")
    assert "files" in offered(shell, "generate", "--image", "/etc/ho")
