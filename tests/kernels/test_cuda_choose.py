"""The CUDA kernel that draws tokens, emulated on the host, against the portable operation."""

from __future__ import annotations

import cuda_emulation
import numpy as np
import pytest
from tinygrad import Tensor

from gemma4_core.contracts.rows import SamplingRows
from gemma4_core.ops.sampling import IN_PROMPT, SamplingTensors, sample
from gemma4_plugins.devices.cuda.kernels.choose import Chooser, Drawing
from gemma4_plugins.devices.cuda.kernels.plan import HISTORY

VOCABULARY = 1500
PARAMS = {
    "plain": (1.0, 0, 1.0, 0.0, 1.0),
    "greedy": (0.0, 0, 1.0, 0.0, 1.3),
    "gemma": (1.0, 64, 0.95, 0.0, 1.0),
    "one": (0.7, 1, 1.0, 0.0, 1.0),
    "share": (1.5, 0, 0.6, 0.0, 1.2),
    "cut": (0.9, 0, 1.0, 0.05, 1.0),
    "everything": (1.2, 5000, 0.999, 0.01, 1.1),
}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("name", PARAMS)
def test_draws_what_the_portable_operation_draws(name: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_emulation.emulate(monkeypatch, blocks=3)
    rng = np.random.default_rng(len(name))
    history = cuda_emulation.EmulatedHostBuffer((HISTORY, 4), np.uint32)
    banned = rng.random((1, VOCABULARY)) < 0.01
    upload = lambda array: Tensor(array, device=cpu).contiguous().realize()  # noqa: E731
    suppressed = upload(banned)
    chooser = Chooser(VOCABULARY, cpu, suppressed if name in ("plain", "gemma") else None)
    params, seed = np.array([(*PARAMS[name], 0, 0)], np.float32), np.array([9], np.uint32)
    # the second of three slots; with no penalty nothing is counted
    counted = params[0, 4] != 1
    counts = np.where(rng.random((3, VOCABULARY)) < 0.1, IN_PROMPT, 0).astype(np.int32)
    table = upload(counts) if counted else None
    drawing = Drawing.of(SamplingRows(params, seed, table))
    ids, logprob = upload(np.zeros(1, np.int32)), upload(np.zeros(1, np.float32))
    outputs, drawn = (cuda_emulation.address(ids), cuda_emulation.address(logprob)), set()
    for position in range(6):
        values = np.round(rng.standard_normal((1, VOCABULARY)) * 3, 1 if position % 2 else 6).astype(np.float32)  # ties
        logits = upload(values)
        at = cuda_emulation.address(logits)
        chooser.launch(at, position, drawing, 1, outputs, history.address, position + 1)
        masked = suppressed.where(-1e30, logits) if chooser.suppressed is not None else logits
        theirs = SamplingTensors(upload(params), upload(seed), upload(counts[1:2]) if counted else None)
        expected, right = (t.numpy()[0] for t in sample(masked, theirs, upload(np.array([position], np.int32))))
        given = int(ids.numpy()[0])
        assert given == expected and logprob.numpy()[0] == pytest.approx(right, abs=1e-4)
        slot = history.array[(position + 1) % HISTORY]
        assert (slot[0], slot[2]) == (given, position + 1)
        counts[1, given] += 1
        assert table is None or (table.numpy() == counts).all()
        drawn.add(given)
    assert len(drawn) > 1
