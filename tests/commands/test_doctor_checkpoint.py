"""A real checkpoint, where ``GEMMA4_REAL_CHECKPOINT`` names its folder or hub name; else nothing is collected."""

from __future__ import annotations

import os

CHECKPOINT = os.environ.get("GEMMA4_REAL_CHECKPOINT")

if CHECKPOINT:
    import pytest

    from gemma4_plugins.commands.doctor.verification import FAILED, verify

    @pytest.mark.timeout(3600)
    def test_real_checkpoint() -> None:
        assert CHECKPOINT is not None
        checks = list(verify(CHECKPOINT, os.environ.get("GEMMA4_REAL_DEVICE", "auto")))
        assert [check for check in checks if check.status == FAILED] == []
        assert {"config", "tensors", "tokenizer", "logits", "generate"} <= {check.name for check in checks}
