"""An accelerator, where ``GEMMA4_TEST_DEVICE`` names one (``cuda``, ``metal``, …); else nothing is collected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

DEVICE = os.environ.get("GEMMA4_TEST_DEVICE")

PROGRAM = """
import json, sys
from tinygrad import Device
from gemma4_core import load_pretrained, registry
from gemma4_core.devices import free_memory_bytes
model = load_pretrained(sys.argv[1], device=sys.argv[2], tokenizer="raw")
tokens = list(model.generate([2, 3, 4, 5], max_new_tokens=8))
logits = model.forward_ids([2, 3, 4, 5])[0].float().numpy()
backend = registry.devices[sys.argv[2]]
print(json.dumps({"tokens": len(tokens), "spread": float(logits.std()), "opened": sorted(Device._opened_devices),
                  "target": model.device, "default": Device.DEFAULT, "free": free_memory_bytes(model.device),
                  "details": dict(backend.details()) if backend.details else {}}))
"""

if DEVICE:
    from gemma4_core.checkpoint.random_weights import write_random_checkpoint

    def test_device_runs_a_model_without_compiler_and_without_the_cpu_device(tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "model", "tiny-e2b", towers=False)
        environment = {**os.environ, "PATH": "/nowhere", "CC": "/no/such/cc", "XDG_CACHE_HOME": str(tmp_path)}
        environment.pop("DEV", None)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), str(DEVICE)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["tokens"] == 8 and report["spread"] > 0
        assert report["default"] == report["target"] and report["target"] in report["opened"]
        assert "CPU" not in report["opened"]
        assert report["free"] is None or report["free"] > 0
