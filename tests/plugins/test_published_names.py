"""Packages in plugins/, the example package and the guide import nothing of ours but what the guide publishes."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "plugins.md").read_text()
PUBLISHED = re.findall(r"^\| `(gemma4_core[\w.]*)` \|", GUIDE, re.MULTILINE)
CALLBACKS = sorted((ROOT / "examples/callbacks").glob("*.py"))
PACKAGES = [path.parent for folder in ("plugins/*", "examples/plugin")
            for path in sorted(ROOT.glob(f"{folder}/src/*/__init__.py"))]
def imports(code: str) -> Iterator[tuple[str, str | None]]:
    """Modules of ours that a text imports, function-local and type-only imports included, each with the name taken."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.startswith("gemma4_"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gemma4_"):
            yield from ((node.module, alias.name) for alias in node.names)


def unpublished(code: str, own: str = "gemma4_none") -> list[str]:
    """What a text imports that is not published, as ``module.name``."""
    found = []
    for module, name in imports(code):
        if module.split(".")[0] == own or f"{module}.{name}" in PUBLISHED:
            continue
        public = module in PUBLISHED and (name is None or name in names(module))
        found += [] if public else [f"{module}.{name}" if name else module]
    return found


def names(module: str) -> list[str]:
    """The public names of a module: its ``__all__``, else all that have no underscore in front."""
    loaded = importlib.import_module(module)
    return getattr(loaded, "__all__", [name for name in dir(loaded) if not name.startswith("_")])


def test_the_guide_lists_modules() -> None:
    assert PUBLISHED[0] == "gemma4_core" and 5 <= len(PUBLISHED) == len(set(PUBLISHED)) <= 12


@pytest.mark.parametrize("module", PUBLISHED)
def test_every_published_name_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in names(module) if getattr(loaded, name, None) is None] == []


@pytest.mark.parametrize("path", CALLBACKS, ids=lambda path: path.name)
def test_an_example_callback_imports_published_names_alone(path: Path) -> None:
    assert unpublished(path.read_text()) == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_imports_published_names_alone(package: Path) -> None:
    files = list(package.rglob("*.py"))
    assert files
    found = {path.name: unpublished(path.read_text(), package.name) for path in files}
    assert {(file, name) for file, bad in found.items() for name in bad} == set()


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
def test_an_example_of_the_guide_imports_published_names_alone(code: str) -> None:
    assert unpublished(code) == []


def test_what_is_not_published_is_found() -> None:
    code = "def f():\n    from gemma4_core.model.cache import GemmaCache\n    import gemma4_plugins.formats"
    assert unpublished(code) == ["gemma4_core.model.cache.GemmaCache", "gemma4_plugins.formats"]
    assert unpublished("from gemma4_core.config import nonsense") == ["gemma4_core.config.nonsense"]
    assert unpublished("from gemma4_core import cli, Context") == []
