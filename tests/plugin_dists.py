"""Throw-away distributions for tests: a module and its ``.dist-info`` in a folder on ``sys.path``."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()


class Dists:
    """Makes distributions in one folder. Module names are fresh each time, so that no test sees another's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def add(
        self, source: str, entry_point: str = "toy", distribution: str = "gemma4-toy", version: str = "1.2.3",
        group: str = "gemma4",
    ) -> str:
        """A distribution with one module behind one entry point; the name of the module."""
        module = f"gemma4_toy_{next(_numbers)}"
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        self.metadata(f"[{group}]\n{entry_point} = {module}\n", distribution, version)
        return module

    def metadata(self, entry_points: str, distribution: str = "gemma4-toy", version: str = "1.2.3") -> None:
        """Only the ``.dist-info`` folder."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: A toy\n"
        (info / "METADATA").write_text(text)
        (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture(name="dists")
def dists_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dists]:
    """A folder for distributions that is on ``sys.path`` for this test; nothing is blocked."""
    monkeypatch.delenv("GEMMA4_DISABLE_PLUGINS", raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = Dists(folder)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


OPTIMIZER = """
from gemma4_core import OptimizerBackend, hookimpl

@hookimpl
def gemma4_optimizers():
    return [OptimizerBackend("{name}", "toy", build=print)]
"""
