"""The one environment that tests install, made once a test run and shared by all of its processes.

It is what README.md promises: a fresh copy of the project, in which make has set up ``.venv`` for the demo. Packages
that a test adds go into folders of their own, which only that test's processes have on their path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this test run that ``make`` fills once, whichever process asks first.

    Args:
        factory: pytest's, whose base folder tells the run; each process of pytest-xdist has one below the run's own.
        name: the folder's name.
        make: fills the folder, which is absent when it is called. Where it raises, the next one tries again.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def copy_of_the_project(folder: Path) -> Path:
    """The files that belong to the project, without what tests and builds left beside them."""
    ignore = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs",
                                    "fuzz-findings")
    shutil.copytree(ROOT, folder, ignore=ignore, symlinks=True)
    return folder


class Shell:
    """bash in a copy of the project, with a home of its own and little of this process's environment."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        home.mkdir(exist_ok=True)
        cache = os.environ.get("PIP_CACHE_DIR") or str(Path("~/.cache/pip").expanduser())
        own = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG") or "pip" in name.lower()}
        path = os.pathsep.join(part for part in own["PATH"].split(os.pathsep) if ".venv" not in part)
        self.environment = own | {"HOME": str(home), "PATH": path, "PIP_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"}

    def run(self, script: str, **variables: str) -> str:
        """stdout of a script; every line of it must succeed."""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.environment | variables, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=600, check=False,
        )
        assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout


@pytest.fixture(scope="session", name="shell")
def shell_fixture(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in a copy of the project whose ``.venv`` is ready."""

    def make(folder: Path) -> None:
        Shell(copy_of_the_project(folder), folder.with_name("home")).run("make .venv/.demo")

    folder = once(tmp_path_factory, "project", make)
    return Shell(folder, folder.with_name("home"))
