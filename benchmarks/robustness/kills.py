"""Processes killed at random moments while they write checkpoints: what is lost, and what is left over.

    python benchmarks/robustness/kills.py --kills 1000

Each child is forked from a process that has imported everything and loaded a tiny model, writes as fast as it can, and
gets SIGKILL after a random time. After each kill the target must open with one of the two contents that are written
alternately, whole. At the end one more write must leave nothing behind. Prints one JSON object of figures; exit code 1
if something was lost or left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

Write = Callable[[int], object]


class Job:
    """One way to write a checkpoint, again and again, with two contents alternately."""

    def __init__(self, name: str, home: Path, write: Write, check: Callable[[Path], object]) -> None:
        self.name, self.home, self.write, self.check = name, home, write, check
        self.target = home / "out"
        self.right: set[str] = set()
        self.kills = self.in_the_middle = self.most_names = 0
        self.most_bytes = 0
        self.lost: list[str] = []

    def prepare(self) -> None:
        """Record both contents."""
        for turn in (0, 1):
            self.write(turn)
            self.right.add(digest(self.target))
        assert len(self.right) == 2, f"{self.name}: both contents are the same"

    def kill(self, seconds: float) -> None:
        """Fork a child that writes, kill it, and look at what is there."""
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            try:
                for turn in range(1_000_000):
                    self.write(turn % 2)
            finally:
                os._exit(3)  # it must not end by itself
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        self.kills += 1
        hidden = [path for path in self.home.iterdir() if path.name.startswith(".")]
        self.in_the_middle += bool(hidden)
        self.most_names = max(self.most_names, len(hidden))
        self.most_bytes = max(self.most_bytes, sum(size(path) for path in hidden))
        try:
            assert os.WIFSIGNALED(status), f"the writer ended by itself with status {status}"
            self.check(self.target)
            found = digest(self.target)
            assert found in self.right, f"content {found}"
        except Exception as fault:
            self.lost.append(f"{type(fault).__name__}: {fault}"[:300])

    def report(self) -> dict[str, Any]:
        """Figures, after one more write that must clean up."""
        self.write(0)
        left = sorted(path.name for path in self.home.iterdir() if path.name.startswith("."))
        return {
            "kills": self.kills, "in_the_middle": self.in_the_middle, "lost": len(self.lost), "faults": self.lost[:3],
            "most_left_over_names": self.most_names, "most_left_over_bytes": self.most_bytes,
            "checkpoint_bytes": size(self.target), "left_at_the_end": left,
        }


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum(inner.lstat().st_size for inner in path.rglob("*") if not inner.is_dir())


def digest(folder: Path) -> str:
    """Names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()


def opens(folder: Path) -> None:
    """Open a checkpoint and compare its tensors with its config. Raises a Gemma4Error."""
    from gemma4_core.checkpoint.opening import open_checkpoint
    from gemma4_core.config import load_generation_config

    with open_checkpoint(folder) as checkpoint:
        checkpoint.check_all()
        load_generation_config(checkpoint.context, checkpoint.config)


def saving(home: Path, sources: list[Path]) -> Job:
    """``save_training_checkpoint`` with an optimizer's state, over what it saved before."""
    from gemma4_core import build_optimizer, load_pretrained, save_training_checkpoint

    models = [load_pretrained(source, device="cpu") for source in sources]
    optimizers = [build_optimizer(model, "sgd", momentum=0.9, trainable="*.layers.0.mlp.*") for model in models]

    def write(turn: int) -> None:
        save_training_checkpoint(models[turn], home / "out", optimizers[turn], {"turn": turn})

    return Job("save_training_checkpoint", home, write, opens)


def quantising(home: Path, sources: list[Path]) -> Job:
    """``quantize`` of one checkpoint and another to the same folder."""
    from gemma4_core.quantize import quantize

    return Job("quantize", home, lambda turn: quantize(sources[turn], home / "out"), opens)


def fusing(home: Path, sources: list[Path]) -> Job:
    """``fuse`` of one adapter and another to the same folder."""
    from gemma4_lora import fuse

    from gemma4_core.config import load_config

    adapters = [adapter(home.parent / f"adapter-{turn}", load_config(sources[0]), turn) for turn in (0, 1)]
    return Job("fuse", home, lambda turn: fuse(sources[0], [adapters[turn]], home / "out"), opens)


def adapter(folder: Path, config: Any, seed: int) -> Path:
    """An adapter of random numbers for a model's query projections."""
    from dataclasses import replace

    from gemma4_lora.files import save_adapter
    from gemma4_lora.fresh import fresh_adapter
    from gemma4_lora.names import adaptable

    files = fresh_adapter(adaptable(config), config.text_prefix, rank=2, targets=["q_proj"], seed=seed)
    rng = np.random.default_rng(seed)
    pairs = {
        name: replace(pair, b=rng.standard_normal(pair.b.shape).astype(np.float32))
        for name, pair in files.pairs.items()
    }
    return save_adapter(folder, replace(files, pairs=pairs))


def steps(home: Path, sources: list[Path]) -> Job:
    """A training run's folder: a new step each time, the older ones removed, ``last`` pointing to the newest."""
    from gemma4_core import load_pretrained, save_training_checkpoint
    from gemma4_core.training.run_folder import RunFolder

    models = [load_pretrained(source, device="cpu") for source in sources]
    folder = RunFolder(home)
    folder.start({}, resume=False)
    job: Job

    def write(turn: int) -> None:
        step = max((number for number, _ in folder.checkpoints()), default=0) + 1
        save_training_checkpoint(models[turn], folder.step(step), None, {"turn": turn})
        folder.saved(step, keep=2)
        job.target = folder.step(step)

    def check(_: Path) -> None:
        opens(home / "last")
        job.target = folder.newest()
        opens(job.target)
        assert len(folder.checkpoints()) <= 4, "old steps pile up"

    job = Job("steps of a training run", home, write, check)
    return job


JOBS = {"save": saving, "train": steps, "quantize": quantising, "fuse": fusing}


@click.command()
@click.option("--kills", default=1000, show_default=True, help="Total, spread over the ways to write.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=click.Choice(list(JOBS)), multiple=True, help="Some of the ways to write.")
def main(kills: int, seed: int, only: tuple[str, ...]) -> None:
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from tiny_model import write_tiny_checkpoint

    chance, names = random.Random(seed), list(only or JOBS)
    root = Path(tempfile.mkdtemp(prefix="gemma4-kills-"))
    try:
        sources = [write_tiny_checkpoint(root / f"source-{turn}", seed=turn, towers=False) for turn in (0, 1)]
        report, started = {}, time.monotonic()
        for number, name in enumerate(names):
            (root / name).mkdir()
            job = JOBS[name](root / name, sources)
            job.prepare()
            began = time.monotonic()
            for turn in (0, 1, 0, 1):
                job.write(turn)
            once = (time.monotonic() - began) / 4
            for _ in range(kills // len(names) + (number < kills % len(names))):
                job.kill(chance.uniform(0, 2.5 * once))
            report[job.name] = job.report() | {"seconds_of_a_write": round(once, 4)}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    total = {key: sum(found[key] for found in report.values()) for key in ("kills", "in_the_middle", "lost")}
    total |= {"left_at_the_end": sum(len(found["left_at_the_end"]) for found in report.values())}
    print(json.dumps({"total": total, "seconds": round(time.monotonic() - started, 1), "jobs": report}))
    sys.exit(1 if total["lost"] or total["left_at_the_end"] else 0)


if __name__ == "__main__":
    main()
