"""The tests run from a checkout, too, without installing the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if find_spec("gemma4_lora") is None:
    sys.path.insert(0, str(HERE.parent / "src"))
# models and outputs of transformers that the core's tests use too
sys.path.append(str(HERE.parents[2] / "tests"))


@pytest.fixture(autouse=True)
def plain_loops() -> Iterator[None]:
    """Kernels without optimization: they compile in a third of the time, and these models are tiny."""
    from tinygrad.helpers import Context

    with Context(NOOPT=1):
        yield
