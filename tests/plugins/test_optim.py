"""The built-in optimizers against their formulas in numpy and against tinygrad's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context
from tinygrad.nn.optim import LAMB, Muon

from gemma4_core import DeviceSettings, Gemma4Error, registry
from gemma4_core.devices import activate
from gemma4_plugins.optimizers.rounding import at_random

RNG = np.random.default_rng(3)
START = {
    "layers.0.mlp.up_proj.weight": RNG.standard_normal((6, 4)).astype(np.float32),
    "norm.weight": RNG.standard_normal(5).astype(np.float32),
    "layers.0.experts.down_proj": RNG.standard_normal((2, 3, 4)).astype(np.float32),
}
GRADIENTS = [{name: RNG.standard_normal(v.shape).astype(np.float32) for name, v in START.items()} for _ in range(3)]
MATRIX = "layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def _device() -> None:
    activate("cpu", DeviceSettings())


def run(kind: str, lr: float = 0.1, decay: float = 0.0, skip: tuple[int, str] | None = None, **options: Any) -> Any:
    """Values after three steps; ``skip`` leaves one tensor without a gradient at one step."""
    params = {name: Tensor(value).clone().realize() for name, value in START.items()}
    optimizer = registry.optimizers[kind].build(params, lr=lr, weight_decay=decay, **options)
    with Context(TRAINING=1):
        for step, gradients in enumerate(GRADIENTS):
            for name, param in params.items():
                param.grad = None if skip == (step, name) else Tensor(gradients[name])
            optimizer.step()
            optimizer.zero_grad()
    assert all(param.grad is None for param in params.values())
    return {name: param.numpy() for name, param in params.items()}


def adamw(value: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """torch.optim.AdamW in float64."""
    x, m, v = value.astype(np.float64), 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        x = x - 0.1 * decay * x
        x = x - 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return x


def test_adamw_decays_matrices_only_and_counts_each_tensors_steps() -> None:
    found = run("adamw", decay=0.3, skip=(1, "norm.weight"))
    for name, value in START.items():
        gradients = [g[name] for step, g in enumerate(GRADIENTS) if (step, name) != (1, "norm.weight")]
        wanted = adamw(value, gradients, 0.3 if value.ndim >= 2 else 0.0)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum: float, nesterov: bool) -> None:
    found = run("sgd", decay=0.3, momentum=momentum, nesterov=nesterov)
    for name, value in START.items():
        x, velocity = value.astype(np.float64), 0.0
        for gradients in GRADIENTS:
            g = gradients[name] + (0.3 if value.ndim >= 2 else 0.0) * x
            velocity = momentum * velocity + g
            x = x - 0.1 * (g + momentum * velocity if nesterov else velocity)
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("muon", lambda p: Muon([p], lr=0.1, weight_decay=0.3)),
        ("lamb", lambda p: LAMB([p], lr=0.1, weight_decay=0.3)),
    ],
)
def test_as_tinygrads_own(kind: str, theirs: Callable[[Tensor], Any]) -> None:
    found = run(kind, decay=0.3)
    param = Tensor(START[MATRIX]).clone().realize()
    optimizer = theirs(param)
    with Context(TRAINING=1):
        for gradients in GRADIENTS:
            param.grad = Tensor(gradients[MATRIX])
            optimizer.step()
    np.testing.assert_allclose(found[MATRIX], param.numpy(), rtol=1e-3, atol=1e-4)


def test_muon_leaves_vectors_to_adamw_and_takes_each_expert_alone() -> None:
    found, alone = run("muon"), run("adamw")
    np.testing.assert_allclose(found["norm.weight"], alone["norm.weight"], rtol=1e-6)
    stack = "layers.0.experts.down_proj"
    param = Tensor(START[stack][1]).clone().realize()
    optimizer = Muon([param], lr=0.1, weight_decay=0.0)
    with Context(TRAINING=1):
        for gradients in GRADIENTS:
            param.grad = Tensor(gradients[stack][1])
            optimizer.step()
    np.testing.assert_allclose(found[stack][1], param.numpy(), rtol=1e-3, atol=1e-4)


def test_compact_adamw_adds_small_updates_up_and_keeps_16_bits() -> None:
    rng = np.random.default_rng(0)
    start = rng.uniform(1, 2, (64, 64)).astype(np.float32)
    gradient = rng.choice([-1.0, 1.0], (64, 64)).astype(np.float32)
    moved = {}
    for compact in (False, True):
        param = Tensor(start).cast(dtypes.bfloat16).clone().realize()
        before = param.float().numpy()
        # a step is a thirtieth of what bfloat16 can tell apart there
        build = registry.optimizers["adamw"].build
        optimizer = build({MATRIX: param}, lr=2**-7 / 30, weight_decay=0.0, compact=compact)
        kept = {name: t for name, t in optimizer.state_dict().items() if t.shape == param.shape}
        assert {t.dtype for t in kept.values()} == {dtypes.bfloat16 if compact else dtypes.float32}
        assert len(kept) == (2 if compact else 3)  # both moments, and the master
        for _ in range(60):
            with Context(TRAINING=1):
                param.grad = Tensor(gradient)
                optimizer.step()
        moved[compact] = -(param.float().numpy() - before) * gradient
    for values in moved.values():
        np.testing.assert_allclose(values.mean(), 60 * 2**-7 / 30, rtol=0.05)
    assert moved[True].std() < 3 * 2**-7


def test_rounding_at_random() -> None:
    value = np.full(20_000, 1 + 2**-9, np.float32)  # a quarter of the way to the next number
    first, again, later = (at_random(Tensor(value), Tensor([float(step)]), 0).float().numpy() for step in (1, 1, 2))
    assert set(np.unique(first)) == {1.0, np.float32(1 + 2**-7)} and 0.23 < (first > 1).mean() < 0.27
    assert np.array_equal(first, again) and not np.array_equal(first, later)
    other = at_random(Tensor(value), Tensor([1.0]), 1).float().numpy()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.03 and abs(np.corrcoef(first, later)[0, 1]) < 0.03
    odd = at_random(Tensor([np.inf, -np.inf, np.nan, 0.0, -1.5]), Tensor([3.0]), 0).float().numpy()
    np.testing.assert_array_equal(odd, np.array([np.inf, -np.inf, np.nan, 0.0, -1.5], np.float32))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("adamw", {"betas": (0.9,)}, "(0.9,)"),
        ("adamw", {"betas": (0.9, 1.0)}, "1.0"),
        ("adamw", {"eps": -1}, "eps -1"),
        ("adamw", {"compact": 1}, "compact 1"),
        ("sgd", {"momentum": 1.5}, "1.5"),
        ("muon", {"ns_steps": 0}, "ns_steps 0"),
        ("lamb", {"momentum": 0.9}, "unknown option momentum"),
    ],
)
def test_bad_options(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(Gemma4Error) as caught:
        run(kind, **options)
    assert says in str(caught.value)
