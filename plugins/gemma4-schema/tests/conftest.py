"""Lets the tests also run from a checkout, without installing the package."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
if find_spec("gemma4_schema") is None:
    sys.path.insert(0, str(HERE.parent / "src"))
# the core's tiny checkpoint and command runner, and the random schemas of the benchmark
sys.path += [str(HERE.parents[2] / "tests"), str(HERE.parents[2] / "benchmarks" / "robustness")]
