"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gemma4_core

SOURCE = Path(gemma4_core.__file__).parents[1]
PACKAGES = ("gemma4_core", "gemma4_plugins")
FLOORS = (
    "json_lines errors contracts formatting console silence lazy_names",
    "hookspecs config weights ops",
    "plugins devices",
    "checkpoint model quantize",
    "text processing",
    "engine",
    "generation",
    "openai",
    "loading",
    "training",
    "cli",
)
"""The rooms of the core from the lowest floor up; a module may import what stands lower, or beside it."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
LAZY: dict[str, str] = {}
"""Arrows upwards that must stay, as ``"module -> module"``, each with its reason; at most five."""


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((SOURCE / package).rglob("*.py"))}


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


def arrows(module: str) -> Iterator[tuple[str, str]]:
    """Every import of a module, wherever it stands: those inside functions and for type checking too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        yield from ((module, target) for target in targets(node, module) if target in MODULES and target != module)


CORE = {(a, b) for module in MODULES if module.startswith("gemma4_core.") for a, b in arrows(module)}


def floor(module: str) -> int:
    """How high a module of the core stands."""
    parts = module.split(".")
    return FLOOR.get(parts[1] if len(parts) > 1 else "", len(FLOORS))


def looks_up_for_types(source: str, target: str) -> bool:
    """Whether an arrow is one of those that ``contracts`` may have: upwards, for type checking alone."""
    if not source.startswith("gemma4_core.contracts") or floor(target) <= floor(source):
        return False
    tree = ast.parse(MODULES[source].read_text())
    guarded = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body for inner in ast.walk(statement)
    }
    return all(node in guarded for node in ast.walk(tree) if target in targets(node, source))


def test_every_room_has_a_floor() -> None:
    rooms = {module.split(".")[1] for module in MODULES if module.startswith("gemma4_core.")} - {"__main__"}
    assert rooms == set(FLOOR)


def test_no_arrow_goes_up() -> None:
    up = {f"{a} -> {b}" for a, b in CORE if floor(b) > floor(a) and not looks_up_for_types(a, b)}
    assert up - set(LAZY) == set(), "a module stands above what it uses"
    assert set(LAZY) <= up and len(LAZY) <= 5


def test_the_core_does_not_import_its_own_front() -> None:
    """``gemma4_core`` hands out names of all modules, so none of them may need it."""
    assert [f"{a} -> {b}" for a, b in CORE if b == "gemma4_core" and not a.startswith("gemma4_core.cli")] == []


def test_rooms_of_one_floor_do_not_need_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for source, target in CORE:
        a, b = source.split(".")[1], target.split(".")[1] if "." in target else ""
        if a != b and b and floor(source) == floor(target):
            rooms.setdefault(a, set()).add(b)
    assert_no_circle(rooms)


def test_no_import_circles() -> None:
    """Imports inside functions counted, those of types too, but for the types that ``contracts`` speaks of."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module in MODULES:
        for source, target in arrows(module):
            if not looks_up_for_types(source, target) and f"{source} -> {target}" not in LAZY:
                graph[source].add(target)
    assert sum(map(len, graph.values())) > 500
    assert_no_circle(graph)


def assert_no_circle(graph: Mapping[str, set[str]]) -> None:
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
def test_help_imports_no_tinygrad_and_no_plugin_but_the_command(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['gemma4', *{arguments!r}]\nfrom gemma4_core.cli import main\n"
    code += "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    found = imported_by(code)
    assert not found & {"tinygrad", "numpy", "tokenizers", "PIL", "jinja2"}
    assert arguments[0] == "plugins" or "gemma4_plugins" not in found
