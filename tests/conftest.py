"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gemma4_core.checkpoint.hub import packaged_demo

# these ask the trained model, so there are none until the package holds it
collect_ignore = [] if packaged_demo() is not None else ["test_demo_model.py"]


@pytest.fixture
def plain_loops() -> Iterator[None]:
    """Kernels without optimization: they compile in less than half of the time, and these models are tiny."""
    from tinygrad.helpers import Context

    with Context(NOOPT=1):
        yield


@pytest.fixture
def cpu() -> str:
    """tinygrad's CPU device, set up as ``load_pretrained`` does it."""
    from gemma4_core.descriptions import DeviceSettings
    from gemma4_core.devices import activate

    return activate("cpu", DeviceSettings())[1]
