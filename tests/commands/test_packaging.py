"""What wheel and source distribution hold, and that the wheel works without the sources."""

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
from installed import ROOT, Shell, copy_of_the_project, once, shell_fixture  # noqa: F401
from test_readme import README

SOURCE = ROOT / "src"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of a copy of the project."""

    def build(folder: Path) -> None:
        project = copy_of_the_project(folder / "project")
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(project)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    dist = once(tmp_path_factory, "packaging", build) / "dist"
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
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
    for name in ("Makefile", "LICENSE", "conftest.py", "docs/cli.md", "plugins/gemma4-lora/pyproject.toml",
                 "benchmarks/paired.py"):
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
def test_the_wheel_shows_the_demo_without_the_sources(
    built: tuple[Path, Path], shell: Shell, tmp_path: Path
) -> None:
    pip = ".venv/bin/python -m pip --disable-pip-version-check -q install --no-index"
    # what the wheel requires is what the environment has
    shell.run(f"{pip} --dry-run '{built[0]}[cpu]'")
    shell.run(f"{pip} --no-deps --target {tmp_path / 'site'} {built[0]}")
    told = f"cd {tmp_path}; {shell.folder}/.venv/bin/python -c 'import gemma4_core; print(gemma4_core.__file__)'"
    wheel = {"PYTHONPATH": str(tmp_path / "site")}
    assert shell.run(told, **wheel).strip() == str(tmp_path / "site" / "gemma4_core" / "__init__.py")
    assert shell.run(f"cd {tmp_path}; site/bin/gemma4 demo --seed 1", **wheel).count("(right)") >= 2
