"""Memory of the portable graphs: what they need for the buffers at hand, not for the longest context."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinygrad.helpers import GlobalCounters

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint


@pytest.mark.usefixtures("plain_loops")
def test_a_chunk_plans_for_the_positions_that_its_buffers_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    model = load_pretrained(write_random_checkpoint(tmp_path / "tiny", "tiny-e2b", towers=False), device="cpu")
    before = GlobalCounters.mem_used
    logits, _ = model.forward_ids([[2, 5, 7]], cache=model.make_cache())
    assert logits.shape[:2] == (1, 3)
    assert GlobalCounters.mem_used - before < 100e6
