"""Random checkpoints of official sizes, written, loaded and run: load time, first token, tokens/s, peak memory.

    python benchmarks/sizes.py --sizes E2B E4B 26B-A4B 31B --device cuda --root /dev/shm

Prints one JSON object per size. Weights are random; each folder is removed after its run unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = ("E2B", "E4B", "26B-A4B", "31B")


def run(folder: Path, size: str, device: str, prompt_length: int, new: int) -> dict[str, Any]:
    """Load and generate twice; the second run is the steady state."""
    from gemma4_core import load_pretrained
    from gemma4_plugins.commands.bench.traffic import weight_bytes

    model = load_pretrained(folder, device=device, modalities=["text"])
    prompt = [2, *(5 + 7 * i % 50000 for i in range(prompt_length - 1))]
    runs = []
    for _ in range(2):
        parts = list(model.stream_generate(prompt_tokens=prompt, max_new_tokens=new, stop_ids=()))
        assert parts[-1].stats is not None
        runs.append(parts[-1].stats)
    first, steady = runs
    return {
        "size": size,
        "device": str(model.device),
        "operations": model.operations.name,
        "load_seconds": round(model.load_seconds, 2),
        "first_run_prompt_seconds": round(first.prompt_seconds, 2),
        "first_run_seconds": round(first.prompt_seconds + first.generation_seconds, 2),
        "first_token_seconds": round(steady.prompt_seconds, 4),
        "prompt_tokens": prompt_length,
        "tokens_per_second": round(steady.generation_tps, 2),
        "gigabytes_per_second": round(steady.generation_tps * weight_bytes(model) / 1e9, 1),
        "peak_memory_gb": round(steady.peak_memory_bytes / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--root", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--prompt-length", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(run(options.folder, options.sizes[0], options.device, options.prompt_length, options.new)))
        return
    from gemma4_core.checkpoint import write_random_checkpoint

    for size in options.sizes:
        folder = options.root / f"gemma4-random-{size}"
        began = time.perf_counter()
        if not folder.exists():
            write_random_checkpoint(folder, size, towers=False)
        print(json.dumps({"size": size, "write_seconds": round(time.perf_counter() - began, 1)}), flush=True)
        # a process of its own, so that one size's failure or memory does not touch the next
        subprocess.run([sys.executable, *sys.argv, "--folder", str(folder), "--sizes", size], check=False)
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
