"""Running many cases of a target in worker processes, and collecting those that go wrong."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.samples import Case
from fuzzing.watch import ROOT

START_SECONDS = 300.0
"""Seconds for a worker to import everything and make its seeds."""
FINE = ("ok", "refused")
FRAME = re.compile(r'File "(.*?/(?:gemma4_\w+)/.*?)", line \d+ in (\S+)')


@dataclass(frozen=True)
class Limits:
    """Limits of one case."""

    seconds: float = 20.0
    """CPU seconds."""
    waiting: float = 30.0
    """Wall-clock seconds, for a case that waits forever."""
    growth: int = 1 << 30
    """Bytes by which a worker's memory may grow."""


@dataclass
class Finding:
    """Something that went wrong, reduced as far as possible."""

    kind: str
    """``exception``, ``message``, ``contract``, ``output``, ``outside``, ``hang``, ``crash`` or ``memory``."""
    type: str
    where: str
    case: str
    message: str
    traceback: str = ""
    count: int = 1
    """Cases that ended this way."""
    files: str = ""
    """The folder that keeps the case's files."""

    @property
    def signature(self) -> tuple[str, str, str]:
        """Equal for cases that count as the same fault."""
        return self.kind, self.type, self.where


@dataclass
class Figures:
    """The results of a run of one target."""

    target: str
    cases: int = 0
    ok: int = 0
    refused: int = 0
    seconds: float = 0.0
    cases_per_minute: int = 0
    tracebacks: int = 0
    hangs: int = 0
    crashes: int = 0
    outside: int = 0
    """Cases that opened something outside their folder."""
    max_growth_mb: int = 0
    slowest_seconds: float = 0.0
    slowest_case: str = ""
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a line of JSON."""
        return asdict(self)


class Process:
    """One worker."""

    def __init__(self, target: str, limits: Limits) -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{Path(target).stem}-"))
        (self.folder / "tmp").mkdir()
        reading, writing = os.pipe()
        here = Path(__file__).resolve().parents[1]
        sources = [here, ROOT / "src", ROOT / "tests", *ROOT.glob("plugins/*/src")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, sources)), "TMPDIR": str(self.folder / "tmp"),
            "HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1", "GEMMA4_KEEP_GRAPHS": "0", "PARALLEL": "0",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        for name in ("GEMMA4_DEBUG", "GEMMA4_MODEL_DIR", "DEBUG", "RUST_BACKTRACE", "COLUMNS"):
            environment.pop(name, None)
        self.errors = open(self.folder / "start.txt", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fuzzing.worker", target, str(self.folder), str(writing)],
            stdin=subprocess.PIPE, stdout=self.errors, stderr=self.errors, pass_fds=(writing,), env=environment,
            cwd=self.folder, start_new_session=True,
        )
        os.close(writing)
        self.replies = os.fdopen(reading, "rb")
        self.cases = 0
        started = self._reply(START_SECONDS, START_SECONDS)
        if started["kind"] != "reply":
            said = "".join(
                (self.folder / name).read_text(errors="replace")[-3000:] for name in ("start.txt", "output.txt")
                if (self.folder / name).exists()
            )
            self.close()
            raise RuntimeError(f"the worker of {target} does not start ({started['kind']}): {said}")
        self.seeds: int = started["seeds"]

    def run(self, case: Case, keep: Path | None = None) -> dict[str, Any]:
        """How a case ends. After ``hang`` and ``crash`` the worker is gone."""
        assert self.process.stdin is not None
        asked = {"case": str(case), "keep": None if keep is None else str(keep)}
        self.cases += 1
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return self._crashed()
        result = self._reply(self.limits.seconds, self.limits.waiting)
        if result["kind"] in FINE:
            if result["growth"] > self.limits.growth:
                result |= {"kind": "memory", "type": "grows", "message": f"{result['growth'] >> 20} MiB more"}
            elif result["cpu"] > self.limits.seconds or result["seconds"] > self.limits.waiting:
                result |= {"kind": "hang", "type": "slow", "message": f"{result['seconds']:.1f} s"}
        return result

    def _reply(self, seconds: float, waiting: float) -> dict[str, Any]:
        began, before = time.monotonic(), self._cpu()
        while not select.select([self.replies], [], [], 0.25)[0]:
            if self._cpu() - before > 1.5 * seconds or time.monotonic() - began > 1.5 * waiting:
                return self._stuck(time.monotonic() - began)
        line = self.replies.readline()
        return {"kind": "reply", **json.loads(line)} if line else self._crashed()

    def _cpu(self) -> float:
        """CPU seconds that the worker has used."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _stuck(self, seconds: float) -> dict[str, Any]:
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        text = self._stacks()
        self.close()
        return {"kind": "hang", "type": "stopped", "message": f"stopped after {seconds:.0f} s", "traceback": text,
                "where": _first_frame(text), "growth": 0, "seconds": seconds, "outside": 0}

    def _crashed(self) -> dict[str, Any]:
        code = self.process.wait()
        text = self._stacks()
        self.close()
        return {"kind": "crash", "type": f"exit code {code}", "message": text[:300], "traceback": text,
                "where": _first_frame(text), "growth": 0, "seconds": 0.0, "outside": 0}

    def _stacks(self) -> str:
        from fuzzing.worker import STACKS

        path = self.folder / STACKS
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    @property
    def alive(self) -> bool:
        """Whether it can run another case."""
        return self.folder.exists()

    def close(self) -> None:
        """End it, with everything that it started."""
        if not self.folder.exists():
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.replies, self.errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _first_frame(text: str) -> str:
    found = FRAME.search(text)
    return "" if found is None else f"{'/'.join(Path(found[1]).parts[-3:])}:{found[2]}"


class Campaign:
    """A run of one target."""

    def __init__(self, target: str, limits: Limits | None = None, keep: Path | None = None) -> None:
        """``keep`` is a folder for the files of findings."""
        self.target, self.limits, self.keep = target, limits or Limits(), keep
        self.figures = Figures(target)
        self._worker: Process | None = None
        self._found: dict[tuple[str, str, str], Finding] = {}

    @property
    def worker(self) -> Process:
        """A worker that can run a case."""
        if self._worker is None or not self._worker.alive:
            self._worker = Process(self.target, self.limits)
        return self._worker

    def run(self, cases: int, seed: int = 1, minutes: float | None = None, first: int = 0) -> Figures:
        """Run this many cases, or as many as fit into a time."""
        figures, seeds = self.figures, self.worker.seeds
        began, number = time.monotonic(), first
        try:
            while number < first + cases and (minutes is None or time.monotonic() - began < minutes * 60):
                self._note(Case.draw(self.target, seeds, seed, number))
                number += 1
        finally:
            if self._worker is not None:
                self._worker.close()
        figures.seconds = round(time.monotonic() - began, 1)
        figures.cases_per_minute = round(figures.cases / max(figures.seconds, 1e-3) * 60)
        figures.findings = list(self._found.values())
        return figures

    def _note(self, case: Case) -> None:
        result, figures = self.worker.run(case), self.figures
        figures.cases += 1
        kind = result["kind"]
        figures.ok += kind == "ok"
        figures.refused += kind == "refused"
        figures.tracebacks += kind == "exception"
        figures.hangs += kind == "hang"
        figures.crashes += kind == "crash"
        figures.outside += bool(result["outside"])
        figures.max_growth_mb = max(figures.max_growth_mb, result["growth"] >> 20)
        if result["seconds"] > figures.slowest_seconds:
            figures.slowest_seconds, figures.slowest_case = round(result["seconds"], 2), str(case)
        if kind in FINE:
            return
        if kind == "memory":
            self.worker.close()  # its peak memory is already recorded
        finding = self._finding(case, result)
        if (known := self._found.get(finding.signature)) is not None:
            known.count += 1
            return
        self._found[finding.signature] = finding
        self._shrink(finding, case)

    def _finding(self, case: Case, result: dict[str, Any]) -> Finding:
        return Finding(result["kind"], result["type"], result.get("where", ""), str(case), result["message"],
                       result.get("traceback", ""))

    def _shrink(self, finding: Finding, case: Case) -> None:
        """Drop mutations as long as the case ends in the same way; keep its files."""
        at = 0
        while at < len(case.mutations) and len(case.mutations) > 1:
            fewer = Case(case.target, case.seed, case.mutations[:at] + case.mutations[at + 1 :])
            result = self.worker.run(fewer)
            if result["kind"] == "memory":
                self.worker.close()
            same = result["kind"] not in FINE and self._finding(fewer, result).signature == finding.signature
            case, at = (fewer, at) if same else (case, at + 1)
            if same:
                finding.message = result["message"]
        finding.case = str(case)
        if self.keep is not None:
            folder = self.keep / f"{Path(self.target).stem}-{len(self._found):03}"
            self.worker.run(case, folder / "files")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "finding.json").write_text(json.dumps(asdict(finding), indent=2) + "\n")
            finding.files = str(folder)
