"""Device ``one-core``: tinygrad's CPU without threads. It leaves the other cores to whoever needs them.

It takes the built-in device's operations and brings one of its own, a norm, which passes on the calls that it cannot
serve.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gemma4_core import DeviceBackend, DeviceSettings, hookimpl, registry

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.ops import Operations


def unusable() -> str | None:
    """It can be used where the built-in CPU plugin can: that one finds a compiler."""
    return registry.devices["cpu"].unusable() if "cpu" in registry.devices else "the plugin cpu is not loaded"


def prepare(settings: DeviceSettings) -> None:
    """Nothing but the compiler, which ``unusable`` has set: threads are what the built-in plugin would add."""


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x [..., n]`` normalised over n in fp32 by one matrix product with itself, in x's dtype."""
    from gemma4_core.ops import portable

    if weight is None:
        return portable().rms_norm(x, weight, eps)
    wide = x.float()
    squares = wide.unsqueeze(-2).matmul(wide.unsqueeze(-1)).squeeze(-1)  # [..., 1, n] x [..., n, 1] -> [..., 1]
    return (wide * (squares / x.shape[-1] + eps).rsqrt() * weight.float()).cast(x.dtype)


def operations() -> Operations:
    """The built-in device's, so that a token is as fast as there. Its whole steps stay although they have a norm of
    their own, since that agrees with this one; without ``built_for`` they would step back."""
    built_in = registry.devices["cpu"].operations
    assert built_in is not None
    return dataclasses.replace(built_in(), name="one-core", rms_norm=rms_norm, built_for={})


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="one-core",
            summary="the CPU without threads",
            target="CPU",
            unusable=unusable,
            prepare=prepare,
            operations=operations,
            matches=lambda context: False,  # only by name: --device auto passes it over
        )
    ]
