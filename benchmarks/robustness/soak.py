"""Thousands of mixed requests at once with random cancels: is any answer touched by another, is anything lost?

    python benchmarks/robustness/soak.py --requests 10000 --seed 1
    python benchmarks/robustness/soak.py --requests 300 --parallel 16 -m FOLDER

Requests of random length with every way to choose tokens, drafts and stops go through one scheduler, as they come, in
random company, and some are cancelled at random moments. Each answer must equal the one that ``generate`` gives to the
same request alone, as far as it came. Prints one JSON object of figures: answers that differ, slots lost, memory that
grew after the first quarter. Exit code 1 if an answer differed, failed or never came, or a slot was lost.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import numpy as np

CONTEXT = 256


def kinds(model: Any, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Options of so many different requests; some begin alike."""
    special = {*model.tokenizer.special_tokens.values()} - {*model.stop_ids}
    ids = [i for i in range(model.config.text_config.usable_ids) if i not in special]
    shared = [rng.choice(ids, int(rng.integers(20, 120))).tolist() for _ in range(4)]
    made = []
    for number in range(count):
        beginning = shared[number % 8] if number % 8 < len(shared) else []
        options: dict[str, Any] = {
            "prompt_tokens": [*beginning, *rng.choice(ids, int(rng.integers(1, 60))).tolist()],
            "max_new_tokens": int(rng.integers(1, 24)), "seed": number,
        }  # fmt: skip
        if number % 2:
            options |= {"temperature": float(rng.uniform(0.5, 1.5)), "top_k": int(rng.integers(0, 40))}
        if number % 3 == 0:
            options |= {"top_p": float(rng.uniform(0.5, 1)), "min_p": float(rng.uniform(0, 0.1))}
        if number % 5 == 0:
            options |= {"repetition_penalty": float(rng.uniform(0.8, 1.5)), "presence_penalty": 0.5,
                        "frequency_penalty": float(rng.uniform(-0.5, 1.0))}  # fmt: skip
        if number % 7 == 0:
            options["logit_bias"] = {int(token): 3.0 for token in rng.choice(ids, 4)}
        if number % 4 == 0:
            options["draft"] = "lookup"
        if number % 11 == 0:
            options["stop_ids"] = rng.choice(ids, 30).tolist()
        made.append(options)
    return made


def alone(model: Any, options: dict[str, Any]) -> list[int]:
    """The ids of the answer by itself, without drafts."""
    given = {name: value for name, value in options.items() if name not in ("prompt_tokens", "draft")}
    return list(model.generate(options["prompt_tokens"], **given))


def resident() -> int:
    """Bytes of memory that the process holds."""
    text = Path("/proc/self/status").read_text() if sys.platform == "linux" else ""
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) << 10 if found else 0


class Soak:
    """One run."""

    def __init__(self, model: Any, parallel: int, count: int, seed: int, distinct: int) -> None:
        from gemma4_core import Scheduler

        self.model, self.count, self.rng = model, count, np.random.default_rng(seed)
        self.kinds = kinds(model, distinct, self.rng)
        self.expected = [alone(model, options) for options in self.kinds]
        self.scheduler = Scheduler(model, parallel, CONTEXT)
        self.running: list[tuple[int, Any]] = []
        self.submitted = self.finished = self.cancelled = self.tokens = 0
        self.wrong: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def run(self) -> dict[str, Any]:
        """Figures."""
        from gemma4_core import Request

        began, mark = time.perf_counter(), 0
        while self.submitted < self.count or not self.scheduler.idle:
            waiting = len(self.running)
            if self.submitted < self.count and waiting < 3 * self.scheduler.parallel and self.rng.random() < 0.6:
                which = int(self.rng.integers(len(self.kinds)))
                self.running.append((which, self.scheduler.submit(Request(**self.kinds[which]))))
                self.submitted += 1
            if self.running and self.rng.random() < 0.03:
                self.running[int(self.rng.integers(len(self.running)))][1].cancel()
            self.scheduler.step()
            self._collect()
            if self.finished >= mark:
                gc.collect()
                self.sizes.append(self._memory())
                mark += max(self.count // 20, 1)
        self._collect()
        gc.collect()
        self.sizes.append(self._memory())
        return self._report(time.perf_counter() - began)

    def _collect(self) -> None:
        left = []
        for which, one in self.running:
            if not one.done:
                left.append((which, one))
                continue
            self.finished += 1
            answer, expected = one.answer, self.expected[which]
            ended = answer.finish_reason == "cancelled" and answer.error is None
            self.cancelled += ended
            self.tokens += len(answer.tokens)
            if answer.error is not None or answer.tokens != (expected[: len(answer.tokens)] if ended else expected):
                what = answer.error or f"{answer.tokens} instead of {expected}"
                self.wrong.append(f"request {one.number} of kind {which}: {what}"[:300])
        self.running = left

    @staticmethod
    def _memory() -> tuple[int, int]:
        from tinygrad.helpers import GlobalCounters

        return GlobalCounters.mem_used, resident()

    def _report(self, seconds: float) -> dict[str, Any]:
        stats = self.scheduler.stats()
        warm = self.sizes[len(self.sizes) // 4]
        device, process = (last - first for first, last in zip(warm, self.sizes[-1], strict=True))
        self.scheduler.close()
        return {
            "requests": self.count, "finished": self.finished, "cancelled": self.cancelled, "differ": len(self.wrong),
            "first": self.wrong[:3], "slots_lost": stats.slots_used, "device_growth_bytes": device,
            "process_growth_bytes": process, "prefix_hits": stats.prefix_hits, "steps": stats.steps,
            "seconds": round(seconds, 1), "requests_per_second": round(self.finished / seconds, 1),
            "tokens_per_second": round(self.tokens / seconds, 1),
        }  # fmt: skip


@click.command("requests")
@click.option("--requests", "count", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same requests.")
@click.option("--parallel", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--distinct", type=click.IntRange(1), default=120, show_default=True, help="Different requests.")
@click.option("-m", "--model-dir", "folder", default=None, help="Checkpoint. Default: the model of the demo.")
def requests_command(count: int, seed: int, parallel: int, distinct: int, folder: str | None) -> None:
    """Many mixed requests with random cancels."""
    from gemma4_core import load_pretrained

    where = folder or str(files("gemma4_core") / "data" / "demo")
    model = load_pretrained(where, device="cpu", dtype="float32", modalities=("text",))
    report = Soak(model, parallel, count, seed, distinct).run()
    click.echo(json.dumps(report, indent=2))
    whole = report["differ"] == 0 and report["slots_lost"] == 0 and report["finished"] == count
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    requests_command()
