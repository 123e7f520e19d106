"""Lets the tests also run from a checkout, without installing the package."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("gemma4_video") is None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
# models that the core's tests use too
sys.path.append(str(Path(__file__).parents[3] / "tests"))
