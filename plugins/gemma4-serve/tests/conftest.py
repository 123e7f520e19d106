"""One server for all tests of a process: the demo model in fp32, on a port of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if find_spec("gemma4_serve") is None:
    sys.path.insert(0, str(HERE.parent / "src"))
# tools that the core's tests use too
sys.path.append(str(HERE.parents[2] / "tests"))

from serve_tools import Live, demo_model  # noqa: E402


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The server that most tests share."""
    with Live(demo_model()) as server:
        yield server
