"""Kernels stand below the plugins that use them: formats, modalities and devices import kernels or layouts, never the
other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gemma4_plugins

SOURCE = Path(gemma4_plugins.__file__).parents[1]


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """Each module below a folder of the built-in plugins with a module of theirs that it imports, local imports and
    those for types included."""
    for path in sorted((SOURCE / "gemma4_plugins" / folder).rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)


def plugins() -> set[str]:
    """The device plugins: modules with a hook."""
    devices = SOURCE / "gemma4_plugins" / "devices"
    found = [path for path in devices.rglob("*.py") if "def gemma4_devices" in path.read_text()]
    assert len(found) > 4
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in found}


def below(target: str, *rooms: str) -> bool:
    return any(target == room or target.startswith(f"{room}.") for room in rooms)


def test_kernels_import_no_format_modality_or_device() -> None:
    above = ("gemma4_plugins.formats", "gemma4_plugins.modalities", *plugins())
    assert [pair for pair in imports("devices") if pair[0] not in plugins() and below(pair[1], *above)] == []


def test_device_plugins_import_no_format_or_modality() -> None:
    above = ("gemma4_plugins.formats", "gemma4_plugins.modalities")
    assert [pair for pair in imports("devices") if below(pair[1], *above)] == []


def test_layouts_import_no_other_plugin() -> None:
    found = [pair for pair in imports("layouts") if below(pair[1], "gemma4_plugins")]
    assert [pair for pair in found if not below(pair[1], "gemma4_plugins.layouts")] == []


def test_formats_and_modalities_import_no_device() -> None:
    for folder in ("formats", "modalities"):
        assert [pair for pair in imports(folder) if below(pair[1], "gemma4_plugins.devices")] == []
