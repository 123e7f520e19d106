"""Names are the field's own words, the core names no plugin, and no module is long."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from gemma4_core.plugins.separate_packages import packages

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGES = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
"""Distributions of this repository that bring plugins of their own."""
MODULES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
CORE = {name: path for name, path in MODULES.items() if name.startswith("gemma4_core/")}
LONGEST = 400

MODULE_RIDDLES = {"kept", "kept_graphs", "captured", "arranged", "finished", "stored", "band", "pieces", "lines"}
RIDDLES = {"Fed", "feed", "Laid", "Asked", "untaught", "remembered", "enough_of_stdio", "taken_over"}
PARTS_OF_NAMES = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.", "gemma4_plugins")
"""What belongs to built-in plugins wherever it stands in a string: prefixes of tensors, and the plugins' package."""
SUFFIXES = {"_scale"}
"""What a built-in format adds to a tensor's name."""
SHARED_WORDS = {"cpu", "raw", "lookup", "huggingface", "vision", "audio", "tinygrad"}
"""Entry points whose names mean other things as well, such as a library or a kind of media."""

PROMISED = {
    "gemma4_core/training/optimizer.py": {"adamw"},  # a default that the documentation names: build_optimizer(model)
    "gemma4_core/checkpoint/opening.py": {"bf16"},  # a short name of a type of numbers: dtype="bf16"
}
"""What a module may name all the same."""


def plugin_names() -> set[str]:
    """The names of the built-in plugins that mean nothing else."""
    found = {ep.name for ep in distribution("tinygrad-gemma4").entry_points if ep.group == "gemma4"}
    assert {"bf16", "int8", "cuda", "muon"} <= found
    return found - SHARED_WORDS


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Names that a module gives or uses: variables, attributes, arguments, functions, classes. Types such as
    ``dtypes.int8`` are numpy's and tinygrad's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("dtypes", "np"):
            continue
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def docstrings(tree: ast.AST) -> set[int]:
    """Lines of texts that stand as statements: they speak about plugins and do nothing."""
    return {node.value.lineno for node in ast.walk(tree) if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)}


def strings(tree: ast.AST) -> Iterator[str]:
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno not in skipped:
            yield node.value


def names_of_plugins(tree: ast.AST, names: set[str]) -> set[str]:
    """Which plugins a module names: as a whole string, as a word of an identifier, or by a part of a tensor's name.

    ``BF16`` is no plugin but a type of safetensors, and ``CUDA`` a backend of tinygrad: capitals count.
    """
    words = {word for name in identifiers(tree) for word in re.split(r"[_\W]+", name)}
    texts = set(strings(tree))
    parts = {part for part in (*PARTS_OF_NAMES, *PACKAGES) for text in texts if part in text}
    return ((words | texts) & names) | (texts & SUFFIXES) | parts


@pytest.mark.parametrize("module", MODULES)
def test_no_name_is_a_riddle(module: str) -> None:
    path = MODULES[module]
    parts = set(Path(module).with_suffix("").parts)
    found = (parts & MODULE_RIDDLES) | (set(identifiers(ast.parse(path.read_text()))) & RIDDLES)
    assert found == set()


@pytest.mark.parametrize("module", CORE)
def test_the_core_names_no_plugin_of_ours(module: str) -> None:
    found = names_of_plugins(ast.parse(CORE[module].read_text()), plugin_names())
    assert found <= PROMISED.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST


def test_what_names_a_plugin_is_found() -> None:
    code = "x = formats['bf16']\ndef save_int8(): ...\ny = f'{name}_scale', 'a gemma4-lora'\n'''about bf16'''"
    assert names_of_plugins(ast.parse(code), plugin_names()) == {"bf16", "int8", "_scale", "gemma4-lora"}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_table_says_what_a_package_brings(package: str) -> None:
    """Each of its commands, and prefixes that are some of its options'; else nothing names it where it is missing."""
    folder, brings = ROOT / "plugins" / package, packages().get(package, {"options": [], "commands": []})
    groups = tomllib.loads((folder / "pyproject.toml").read_text())["project"].get("entry-points", {})
    assert sorted(brings["commands"]) == sorted(groups.get("gemma4.commands", {}))
    code = "".join(path.read_text() for path in sorted(folder.glob("src/**/*.py")))
    assert [prefix for prefix in brings["options"] if f'"{prefix}' not in code] == []


def test_the_table_names_no_other_package() -> None:
    assert set(packages()) <= PACKAGES
