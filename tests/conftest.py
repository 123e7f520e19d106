"""Shared fixtures."""

from __future__ import annotations

import pytest


@pytest.fixture
def cpu() -> str:
    """tinygrad's CPU device, set up as ``load_pretrained`` does it."""
    from gemma4_core.descriptions import DeviceSettings
    from gemma4_core.devices import activate

    return activate("cpu", DeviceSettings())[1]
