"""Lets the tests also run from a checkout, without installing the package."""

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
def prepared_plugin() -> Iterator[None]:
    """``lora_tools.prepared`` around every test."""
    from lora_tools import prepared

    with prepared():
        yield
