"""What wheel and source distribution hold, and that the wheel works in a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from test_readme import README, ROOT, copy_of_the_project

SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of a copy of the project."""
    base = tmp_path_factory.mktemp("packaging")
    project = copy_of_the_project(base / "project")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(base / "dist"), str(project)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [wheel], [sdist] = (base / "dist").glob("*.whl"), (base / "dist").glob("*.tar.gz")
    return wheel, sdist


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert names == wanted
    assert any(name.endswith(".cu") for name in names) and "gemma4_core/data/demo/model.safetensors" in names


def test_the_source_distribution_holds_what_its_tests_need(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = tmp_path.iterdir()
    for name in ("Makefile", "LICENSE", "docs/cli.md", "plugins/gemma4-lora/pyproject.toml", "benchmarks/paired.py"):
        assert (folder / name).is_file(), name
    missing = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not (folder / path.relative_to(ROOT)).is_file()
    ]
    assert not missing
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core/test_config.py",
               "tests/core/test_checkpoint_header.py"]
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_index_page_has_no_link_into_the_repository(built: tuple[Path, Path]) -> None:
    found = metadata(built[0])
    page = str(found.get_payload())
    assert "](docs/" in README and "](docs/" not in page and "`docs/cli.md`" in page
    assert "](https://" in page
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_all("Classifier") and found["Keywords"] and found.get_all("Project-URL")
    assert found["License-Expression"] == "MIT"


@pytest.mark.timeout(900)
def test_the_wheel_shows_the_demo_in_a_clean_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    ours = ("GEMMA4", "PYTHON", "XDG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PIP_CACHE_DIR"] = os.environ.get("PIP_CACHE_DIR") or str(Path("~/.cache/pip").expanduser())
    environment["HOME"] = str(tmp_path)
    for command in (
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        [tmp_path / "venv/bin/python", "-m", "pip", "install", "-q", f"{built[0]}[cpu]"],
    ):
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=600)
    ran = subprocess.run([tmp_path / "venv/bin/gemma4", "demo", "--seed", "1"], env=environment, cwd=tmp_path,
                         capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0 and ran.stdout.count("(right)") >= 2, ran.stdout + ran.stderr
