"""The example distribution and the broken one, built and installed into a folder of their own, once a test run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from installed import ROOT, once

EXAMPLE = ROOT / "examples" / "plugin"
BROKEN = ROOT / "tests" / "data" / "plugins" / "broken"


class Installed:
    """A folder with both distributions; processes see them when it is on their path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``python …`` with the distributions installed."""
        environment = {name: value for name, value in os.environ.items() if name != "GEMMA4_DISABLE_PLUGINS"}
        inherited = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([str(self.folder), *inherited])
        return subprocess.run(
            [sys.executable, *command], env=environment | variables, capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def gemma4(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``gemma4 …`` with the distributions installed."""
        return self.run("-c", "from gemma4_core.cli import main; main()", *arguments, **variables)


@pytest.fixture(scope="session", name="installed")
def installed_fixture(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Both distributions, built and installed without any index or network."""

    def build(folder: Path) -> None:
        ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        for source in (EXAMPLE, BROKEN):
            shutil.copytree(source, folder / "source" / source.name, ignore=ignore)
        done = subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                "--disable-pip-version-check", "--target", str(folder / "site"), "./plugin", "./broken",
            ],
            cwd=folder / "source", capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return Installed(once(tmp_path_factory, "example", build) / "site")
