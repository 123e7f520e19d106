"""Settings of every test process: one compiler thread, and graphs on disk that the tests of a run share."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
PARTS = ("tinygrad", "gemma4_core.ops", "gemma4_core.model", "gemma4_core.engine", "gemma4_core.weights",
         "gemma4_core.devices", "gemma4_core.training.programs", "gemma4_plugins.devices", "gemma4_plugins.formats",
         "gemma4_plugins.modalities")  # fmt: skip
"""What graphs are made of."""

# the test processes fill the cores; tinygrad would start compile processes besides, and anew after 16 kernels each
os.environ.setdefault("PARALLEL", "0")
# apart from the user's own cache, which a run of the tests would fill
SHARED = os.environ.setdefault("XDG_CACHE_HOME", str(HERE / ".pytest_cache" / "caches"))
Path(SHARED).mkdir(mode=0o700, parents=True, exist_ok=True)


def origin(target: Any) -> str:
    """The module that a target of ``setattr`` belongs to."""
    if isinstance(target, str):
        return target
    if isinstance(target, ModuleType):
        return target.__name__
    return str(getattr(target, "__module__", type(target).__module__))


plain = pytest.MonkeyPatch.setattr


def setattr_(patch: pytest.MonkeyPatch, target: Any, *values: Any, **options: Any) -> None:
    """``MonkeyPatch.setattr``. While a part of what graphs are made of is replaced, none is stored and none is read:
    their names on disk do not tell what a test put into them. Tests with a cache folder of their own do as they like.
    """
    if origin(target).startswith(PARTS) and os.environ.get("XDG_CACHE_HOME") == SHARED:
        patch.setenv("GEMMA4_KEEP_GRAPHS", "0")
    plain(patch, target, *values, **options)


pytest.MonkeyPatch.setattr = setattr_  # type: ignore[method-assign, assignment]
