"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gemma4_core

SOURCE = Path(gemma4_core.__file__).parents[1]
PACKAGES = ("gemma4_core", "gemma4_plugins")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((SOURCE / package).rglob("*.py"))}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported: not the insides of functions, not ``if TYPE_CHECKING``."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def targets(node: ast.AST, module: str) -> Iterator[str]:
    """Full names of the modules that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = ".".join(part for part in (package if node.level else "", node.module or "") if part)
        for alias in node.names:
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def test_the_core_imports_nothing_from_the_plugins() -> None:
    arrows = [
        f"{module} -> {target}"
        for module, path in MODULES.items()
        if module.startswith("gemma4_core")
        for node in ast.walk(ast.parse(path.read_text()))
        for target in targets(node, module)
        if target.split(".")[0] == "gemma4_plugins"
    ]
    assert arrows == []


def test_the_core_names_no_plugin_module_in_a_string() -> None:
    """An ``import_module("gemma4_plugins…")`` would be an arrow too."""
    found = [
        module
        for module, path in MODULES.items()
        if module.startswith("gemma4_core")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("gemma4_plugins.")
    ]
    assert found == []


def test_no_import_circles() -> None:
    graph = {
        module: {
            target
            for node in statements(ast.parse(path.read_text()).body)
            for target in targets(node, module)
            if target in MODULES and target != module
        }
        for module, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 20
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def imported_by(code: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh process after running code."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import gemma4_core",
        "from gemma4_core import Gemma4Error, hookimpl, hookspec, registry, Context, CheckpointFormat",
        "import gemma4_core; dir(gemma4_core); gemma4_core.__version__",
    ],
)
def test_importing_the_core_is_light(code: str) -> None:
    assert not imported_by(code) & {"tinygrad", "gemma4_plugins", "numpy", "tokenizers", "PIL", "jinja2", "click"}



@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "--help"], ["--version"]])
def test_help_imports_no_tinygrad_and_no_plugin(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['gemma4', *{arguments!r}]\nfrom gemma4_core.cli import main\n"
    code += "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    assert not imported_by(code) & {"tinygrad", "gemma4_plugins", "numpy", "tokenizers", "PIL", "jinja2"}
