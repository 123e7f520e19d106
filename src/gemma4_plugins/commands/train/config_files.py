"""Reading config files in TOML, YAML and JSON, with limits on size and depth."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_bytes
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.formatting import shown_path

CONFIG_LIMIT = 128 << 10
"""Bytes of a config file."""
DEEPEST = 16
"""Most levels of lists and mappings; options are flat."""
LONG_NUMBER = re.compile(r"(?<![\w-])([\w-]++)[\"']?\s*+[:=]\s*+(?:\[\s*+)?[+-]?[\d_]{4000}")
"""A number with more digits than Python reads, with its key."""


def read_config(path: Path) -> dict[str, Any]:
    """The object in a TOML, YAML or JSON file. Raises InputError naming file and line."""
    where = shown_path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{where}: a config file ends in {', '.join(READERS)}")
    data = read_bytes(path, 2 * CONFIG_LIMIT + (1 << 20), InputError)
    if len(data) > CONFIG_LIMIT:
        raise InputError(f"{where}: larger than {CONFIG_LIMIT >> 10} KiB, too large for a file of options")
    try:
        text = data.decode("utf-8-sig")
        if long := LONG_NUMBER.search(text):
            raise InputError(f"{where}: {long[1][:80]}: the number has thousands of digits")
        found = READERS[suffix](text)
    except Gemma4Error:
        raise
    except RecursionError as fault:
        raise InputError(f"{where}: not valid: lists or mappings are nested too deeply") from fault
    except Exception as fault:
        raise InputError(f"{where}: not valid: {' '.join(str(fault).split())[:200]}") from fault
    if not isinstance(found, dict):
        raise InputError(f"{where}: must hold options such as 'lr: 1e-4', one on each line")
    return found


def unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of these pairs. Raises ValueError for a duplicate key."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {str(key)[:80]!r} is given twice")
        found[key] = value
    return found


def json_text(text: str) -> Any:
    """JSON."""
    return json.loads(text, object_pairs_hook=unique)


def toml(text: str) -> Any:
    """TOML."""
    import tomllib

    return tomllib.loads(text)


def yaml(text: str) -> Any:
    """Parse YAML without aliases, with which a few bytes can stand for gigabytes.

    Raises InputError where PyYAML is not installed.
    """
    try:
        from yaml import AliasEvent, MappingNode, SafeLoader
        from yaml.composer import ComposerError
    except ImportError as fault:
        raise InputError("YAML files need pyyaml (pip install pyyaml); TOML files need nothing") \
            from fault

    class PlainLoader(SafeLoader):
        """Builds plain values of bounded depth, without duplicate keys."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark = self.peek_event().start_mark
            if self.check_event(AliasEvent):
                raise ComposerError(None, None, "aliases such as *name are not supported: write the value", mark)
            if self.depth >= DEEPEST:
                raise ComposerError(None, None, "lists or mappings are nested too deeply", mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found = super().construct_mapping(node, deep)
            if isinstance(node, MappingNode):
                unique((self.construct_object(key, deep=True), None) for key, _ in node.value)
            return found

    loader = PlainLoader(text)
    try:
        return loader.get_single_data() or {}
    finally:
        loader.dispose()


READERS: Mapping[str, Callable[[str], Any]] = {".toml": toml, ".yaml": yaml, ".yml": yaml, ".json": json_text}
