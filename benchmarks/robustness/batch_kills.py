"""Kill ``gemma4 batch`` at random moments and let it go on: is every row written once, as in a run without kills?

    python benchmarks/robustness/batch_kills.py --rows 2000 --kills 20

The demo model answers the rows in fp32. One run is left alone; another one is killed (SIGKILL) again and again, and
sometimes loses a part of its last line as well, as on a machine that lost power. Rows are compared without ``created``.
The last line that is printed is JSON; the exit code is 1 where a row is lost, doubled or different.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

COMMAND = [sys.executable, "-m", "gemma4_core.cli", "batch", "-m", "demo", "--dtype", "float32", "--quiet"]


def make_rows(count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Rows of every form, with and without seeds, penalties, stops and several answers."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        a, b = chance.randrange(100), chance.randrange(100)
        asked: dict[str, Any] = {"max_tokens": chance.randrange(1, 24)}
        asked |= chance.choice([{}, {"temperature": 0.9}, {"temperature": 1.2, "top_k": 20, "seed": number},
                                {"n": 2, "temperature": 0.8}, {"presence_penalty": 0.5, "ignore_eos": True},
                                {"stop": ["1", "e"]}, {"repetition_penalty": 1.3, "min_p": 0.05, "temperature": 0.7}])
        prompt = chance.choice([{"messages": [{"role": "user", "content": f"add {a} and {b}"}]},
                                {"prompt": f"add {a} and {b}"}, {"text": "Once upon a time " * chance.randrange(1, 9)}])
        if chance.random() < 0.5:
            body = {"model": "demo", **prompt, **asked}
            rows.append({"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        else:
            rows.append({"id": f"row-{number}", **prompt, **asked})
        if chance.random() < 0.01:
            rows[-1] = {"id": f"row-{number}", "prompt": "too hot", "temperature": -1}
    return rows


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that have their end."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """Answers and failures, without the time."""
    found = whole_rows(folder / f"{name}.jsonl") + whole_rows(folder / f"{name}.errors.jsonl")
    for row in found:
        if row["response"] is not None:
            del row["response"]["body"]["created"]
    return found


def command(folder: Path, name: str, parallel: int) -> list[str]:
    """The command line for one output."""
    return [*COMMAND, "--parallel", str(parallel), "-i", str(folder / "in.jsonl"), "-o", str(folder / f"{name}.jsonl")]


def tear(path: Path, chance: random.Random) -> bool:
    """Cut the last line somewhere, where there is one; whether it was cut."""
    data = path.read_bytes() if path.exists() else b""
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    if len(data) - start < 2:
        return False
    path.write_bytes(data[: chance.randrange(start + 1, len(data))])
    return True


@click.command()
@click.option("--rows", default=2000, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--parallel", default=8, show_default=True, help="Rows at once in the run that is killed.")
@click.option("--seed", default=0, show_default=True)
def main(rows: int, kills: int, parallel: int, seed: int) -> None:
    chance, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="gemma4-batch-kills-"))
    try:
        lines = [json.dumps(row) + "\n" for row in make_rows(rows, chance)]
        (folder / "in.jsonl").write_text("".join(lines))
        began = time.monotonic()
        subprocess.run(command(folder, "unbroken", 4), check=False, stderr=subprocess.DEVNULL)
        once, torn, written = time.monotonic() - began, 0, []
        for _ in range(kills):
            process = subprocess.Popen(command(folder, "killed", parallel), stderr=subprocess.DEVNULL)
            before = len(whole_rows(folder / "killed.jsonl"))
            wanted, limit = before + chance.randrange(2 * rows // (kills + 1)), time.monotonic() + once + 60
            while process.poll() is None and time.monotonic() < limit:
                if len(whole_rows(folder / "killed.jsonl")) >= wanted:
                    time.sleep(chance.uniform(0, 0.05))
                    break
                time.sleep(0.005)
            process.kill()
            process.wait()
            written.append(len(whole_rows(folder / "killed.jsonl")) - before)
            torn += chance.random() < 0.3 and tear(folder / "killed.jsonl", chance)
        last = subprocess.run(command(folder, "killed", parallel), check=False, stderr=subprocess.DEVNULL)
        again = (folder / "killed.jsonl").read_bytes()
        subprocess.run(command(folder, "killed", parallel), check=False, stderr=subprocess.DEVNULL)
        expected = {row["custom_id"]: row for row in results(folder, "unbroken")}
        found = results(folder, "killed")
        ids = [row["custom_id"] for row in found]
        report = {
            "rows": rows, "kills": kills, "kills_after_rows": sum(count > 0 for count in written), "torn_lines": torn,
            "written_between_kills": written,
            "lost": len(expected.keys() - set(ids)), "doubled": len(ids) - len(set(ids)),
            "different": sum(expected.get(row["custom_id"]) != row for row in found),
            "failed": sum(row["error"] is not None for row in found), "exit_code": last.returncode,
            "same_when_run_again": again == (folder / "killed.jsonl").read_bytes(),
            "seconds": round(time.monotonic() - began, 1), "seconds_unbroken": round(once, 1),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report))
    bad = report["lost"] or report["doubled"] or report["different"] or len(expected) != rows
    sys.exit(1 if bad or not report["same_when_run_again"] else 0)


if __name__ == "__main__":
    main()
