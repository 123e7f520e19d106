"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def plain_loops() -> Iterator[None]:
    """``quick`` for a whole test."""
    from training_tools import quick

    with quick():
        yield


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that load a model with equal arguments get the same one."""
    from cli_tools import load_once

    monkeypatch.setattr("gemma4_core.loading.load_pretrained", load_once)


@pytest.fixture
def cpu() -> str:
    """tinygrad's CPU device, set up as ``load_pretrained`` does it."""
    from gemma4_core.contracts import DeviceSettings
    from gemma4_core.devices import activate

    return activate("cpu", DeviceSettings())[1]


@pytest.fixture
def counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs of ``gemma4 train`` that take no steps."""
    from gemma4_core.training.estimate import Estimate

    nothing = Estimate(0, 0, 0, 0, None, 0.0, 0.0, 1, {32: 0.0}, 0.0, 1)
    monkeypatch.setattr("gemma4_plugins.commands.train.report.estimated", lambda trainer: nothing)
