"""What pages say about the tree is true: every path and module that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")), *sorted(ROOT.glob("examples/**/README.md")),
]  # fmt: skip
PATH = re.compile(r"(?<![\w/.-])(?:src/)?((?:gemma4_core|gemma4_plugins|tests|benchmarks|examples|plugins)/[\w./-]*\w)")
MODULE = re.compile(r"`(gemma4_(?:core|plugins)(?:\.[a-z_0-9]+)+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_there(name: str) -> bool:
    return any((ROOT / base / name).exists() for base in ("", "src"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_path_in_the_text_exists(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    here = [path for path in PATH.findall(prose) if not is_there(path) and not (page.parent / path).exists()]
    assert here == [] or page.name == "origin.md", here  # that page quotes another project's paths


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_module_in_the_text_exists(page: Path) -> None:
    for module in MODULE.findall(page.read_text()):
        # the last part may be a name inside of a module
        parts = module.split(".")
        candidates = ["/".join(parts), "/".join(parts[:-1])]
        found = [c for c in candidates if is_there(c) or is_there(f"{c}.py")]
        assert found and "." in module, module


def test_the_tree_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    [tree] = [block for block in FENCE.findall(text) if "src/gemma4_plugins/ " in block]
    base, missing = "", []
    for line in tree.splitlines()[1:-1]:
        names = re.split(r" {2,}", line.strip())[0].split()
        if not line.startswith(" "):
            base = names[0]
        else:
            missing += [name for name in names if not any((ROOT / base).glob(name.rstrip("/")))]
        assert (ROOT / base).exists(), base
    assert missing == []
