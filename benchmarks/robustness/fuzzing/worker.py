"""A process that runs cases of one target, one after the other, as its parent asks on stdin.

    python -m fuzzing.worker TARGET FOLDER REPLIES

It reads lines of JSON ``{"case": …, "keep": …}`` and answers each with a line on descriptor REPLIES.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from fuzzing.samples import CANARY, Case, write_sample
from fuzzing.targets import Broken, load_target
from fuzzing.watch import Output, Watch, forget_peak, limit_memory, memory

LINE = 500
"""Maximum characters in an error's line."""
OURS = ("/gemma4_core/", "/gemma4_plugins/", "/gemma4_lora/", "/gemma4_video/")
ROOM = 4 << 30
"""Bytes of address space that cases may use."""
STACKS = "stacks.txt"
"""File to which the worker writes its stack on SIGUSR1."""


def frame_of(error: BaseException) -> str:
    """``module.py:function`` of our innermost frame, else of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(part in frame.filename for part in OURS)]
    frame = (ours or list(frames) or [None])[-1]
    return "" if frame is None else f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.name}"


def judged(error: BaseException) -> dict[str, Any]:
    """What an exception means: a refusal is one line of a Gemma4Error, everything else a finding."""
    from gemma4_core.errors import Gemma4Error

    message = str(error)
    if isinstance(error, Broken):
        where = "" if error.__cause__ is None else f"{type(error.__cause__).__name__} {frame_of(error.__cause__)}"
        return {"kind": "contract", "type": str(error.args[0]), "message": message[:1000], "where": where}
    result = {"kind": "exception", "type": type(error).__name__, "message": message[:1000], "where": frame_of(error)}
    if isinstance(error, Gemma4Error):
        result["kind"] = "refused"
        try:
            message.encode()
        except UnicodeEncodeError:
            return result | {"kind": "message", "type": "surrogates in a message"}
        if not message.strip() or not message.isprintable() or len(message) >= LINE:
            what = "a long message" if len(message) >= LINE else "no printable line"
            return result | {"kind": "message", "type": what}
    else:
        result["traceback"] = "".join(traceback.format_exception(error, limit=-12))[-4000:]
    return result

NOTICE = r"(not copied from [^\n]*\n)+"
"""What commands that succeed may write to stderr: which files of a checkpoint were not copied."""

class Worker:
    """A target with its watchers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        (folder / "outside.txt").write_bytes(CANARY)
        self.output = Output(folder / "output.txt")
        self.target = load_target(name)
        self.seeds = self.target.seeds()
        self.watch = Watch()
        # what the first case loads and compiles does not count as growth
        self.run({"case": f"{name}:0:"})
        limit_memory(ROOM)

    def run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Run one case and report how it ended."""
        case, place = Case.parse(asked["case"]), self.folder / "case"
        sample = self.seeds[case.seed]
        for number in case.mutations:
            sample = self.target.mutate(random.Random(number), sample)
        write_sample(sample, place)
        if asked.get("keep"):
            write_sample(sample, Path(asked["keep"]))
        os.chdir(place)
        self.output.taken()
        forget_peak()
        before, _ = memory()
        threads, began, cpu = threading.active_count(), time.perf_counter(), time.process_time()
        result: dict[str, Any] = {"kind": "ok"}
        self.watch.start(place, self.target.reads_anything)
        try:
            self.target.run(place)
        except BaseException as error:
            self.watch.stop()
            result = judged(error)
        outside = self.watch.stop()
        seconds, after = time.perf_counter() - began, memory()
        os.chdir(self.folder)
        written = self.output.taken()
        if result["kind"] in ("ok", "refused"):
            if outside:
                what, _, path = outside[0].partition(" ")
                named = f"{what} {os.path.basename(path)}" if path.startswith("/") else what
                result |= {"kind": "outside", "type": named, "where": "", "message": "; ".join(outside)[:1000]}
            elif written and not re.fullmatch(NOTICE, written):
                first = re.sub(r"[0-9]+", "0", next(iter(written.split("\n")), ""))[:80]
                result |= {"kind": "output", "type": first, "where": "", "message": written}
        return result | {
            "seconds": seconds, "cpu": time.process_time() - cpu, "threads": threading.active_count() - threads,
            "growth": max(after[1] - before, 0), "outside": len(outside),
        }  # fmt: skip


def main() -> None:
    """Serve the parent until it closes stdin."""
    name, folder, descriptor = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(descriptor, "w")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    stacks = open(folder / STACKS, "w")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    faulthandler.enable(file=stacks)
    worker = Worker(name, folder)
    print(json.dumps({"seeds": len(worker.seeds)}), file=replies, flush=True)
    for line in asked:
        print(json.dumps(worker.run(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
