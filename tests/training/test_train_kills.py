"""A process that is killed while it saves leaves a run that goes on. GEMMA4_KILLS sets how often, 10 by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cli_tools import environment
from train_tools import DOWN, write_checkpoint

KILLS = int(os.environ.get("GEMMA4_KILLS", "10"))
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from gemma4_core import build_optimizer, load_pretrained, load_training_checkpoint, save_training_checkpoint
from gemma4_core.training.run_folder import RunFolder

model = load_pretrained(sys.argv[1], device="cpu")
optimizer = build_optimizer(model, trainable=sys.argv[4])
folder = RunFolder(sys.argv[2])
folder.start({}, resume=False)
chance, begun, seen = random.Random(0), 0, []

def save(step):
    save_training_checkpoint(model, folder.step(step), optimizer, {"step": step})
    folder.saved(step, keep=2, best=step - step % 5)

save(0)
for _ in range(int(sys.argv[3])):
    folder.start({}, resume=True)
    first = folder.checkpoints()[-1][0] + 1
    child = os.fork()
    if child == 0:
        for step in range(first, first + 100_000):
            save(step)
        os._exit(0)
    time.sleep(chance.uniform(0.0, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    begun += any(path.name.endswith(".tmp") for path in folder.path.iterdir())
    found = folder.checkpoints()
    newest = folder.newest()
    assert load_training_checkpoint(newest, model, optimizer) == {"step": found[-1][0]}, newest
    load_training_checkpoint(folder.path / "last", model, optimizer)
    best = load_training_checkpoint(folder.path / "best", model, optimizer)["step"]
    assert best % 5 == 0 and best in (found[-1][0] - found[-1][0] % 5, found[-1][0] - 5), (best, found)
    seen.append(found[-1][0])
folder.start({}, resume=True)
left = [path.name for path in folder.path.iterdir() if path.name.startswith(".step")]
print({"kills": len(seen), "in the middle": begun, "steps": seen[-1], "left": left}.__repr__().replace("'", '"'))
"""


def test_kills_while_saving_lose_nothing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    command = [sys.executable, "-c", PROGRAM, str(model), str(tmp_path / "run"), str(KILLS), DOWN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["kills"] == KILLS and found["in the middle"] > 0 and found["steps"] > 0 and not found["left"]
    print(found)
