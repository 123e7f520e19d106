"""A C compiler for tinygrad's CPU device: the user's CC or a suitable clang, else the one inside ziglang.

tinygrad runs ``CC`` as one program, writes C with bf16 to it and reads an ELF object back. Each candidate has to do
just that once; the verdict is stored on disk under the candidate's path, size and time stamp.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma4_core.devices import kernel_cache, machine
from gemma4_core.devices.machine import cache_dir
from gemma4_core.errors import CheckpointError, Gemma4Error

INSTALL = "pip install ziglang"
TRY_SECONDS = 120.0
"""Longest trial of a candidate: reading ziglang's 200 MB from a cold disk takes a while."""
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}

PROBE = """
typedef float float4 __attribute__((aligned(16),ext_vector_type(4)));
typedef unsigned short u16x4 __attribute__((aligned(8),ext_vector_type(4)));
void probe(__bf16* restrict out, const __bf16* restrict x, const u16x4* restrict y, __fp16* restrict z) {
  for (int i = 0; i < 64; i++) {
    float4 f = __builtin_convertvector(y[i], float4);
    out[i] = (__bf16)(__builtin_sqrtf((float)x[i]) + f[0] + f.w);
    z[i] = (__fp16)f.y;
  }
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
"""


@dataclass(frozen=True)
class Candidate:
    """A program that may serve as ``CC``. ``path`` is None where there is no such program, for the reason ``why``."""

    name: str
    path: str | None
    why: str = ""
    parts: tuple[str, ...] = ()
    """Further files; if one changes, the compiler counts as another one."""


@dataclass(frozen=True)
class CompilerChoice:
    """The chosen compiler, or ``path`` None; and those that were rejected, with reasons."""

    name: str
    path: str | None
    version: str
    passed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The outcome of a trial: ``why`` is None where the candidate works."""

    why: str | None
    version: str = ""


# ------------------------------------------------------------------------------------------------ choosing


def choose(environment: Mapping[str, str]) -> CompilerChoice:
    """Try candidates in order until one works; quick if verdicts are stored. Raises DeviceError if only ziglang is
    left, which needs a script, and there is no folder to write it to."""
    verdicts = _read_verdicts()
    passed: list[tuple[str, str]] = []
    for candidate in candidates(environment):
        if candidate.path is None:
            passed.append((candidate.name, candidate.why))
            continue
        key = _identity(candidate)
        verdict = verdicts.get(key) or _try_and_store(candidate, key)
        if verdict.why is None:
            return CompilerChoice(candidate.name, candidate.path, verdict.version, tuple(passed))
        passed.append((candidate.name, verdict.why))
    return CompilerChoice("none", None, "", tuple(passed))


def candidates(environment: Mapping[str, str]) -> Iterator[Candidate]:
    """The user's CC, clang and clang-NN on PATH (newest first), and the package ziglang."""
    search = environment.get("PATH", os.defpath)
    asked = environment.get("CC", "")
    if asked:
        path = shutil.which(asked, path=search)
        yield Candidate(f"CC={asked[:100]}", path and os.path.abspath(path), "is not the path of one program")
    found = list(_clangs(search))
    yield from found
    if not found:
        yield Candidate("clang", None, "is not on PATH")
    yield _ziglang()


def _clangs(search: str) -> Iterator[Candidate]:
    names = {"clang": 1 << 30}
    for folder in search.split(os.pathsep):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):
                if match := re.fullmatch(r"clang-(\d{1,3})", name):
                    names[name] = int(match[1])
    for name in sorted(names, key=lambda name: -names[name]):
        path = shutil.which(name, path=search)
        if path == "/usr/bin/clang" and sys.platform == "darwin" and not _developer_tools():
            yield Candidate(path, None, "needs Xcode's command line tools, which are not installed")
        elif path:
            yield Candidate(path, os.path.abspath(path))


def _developer_tools() -> bool:
    """Whether macOS has a real compiler behind its stub, which would otherwise open an installation dialog."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, timeout=10).returncode == 0
    return False


def _ziglang() -> Candidate:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return Candidate("ziglang", None, "is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    zig = folder / "zig"
    if not os.access(zig, os.X_OK):
        return Candidate("ziglang", None, f"has no program at {zig}")
    try:
        shim = write_shim(zig, folder / "lib")
    except (CheckpointError, OSError) as error:
        return Candidate("ziglang", None, f"needs a small script, which cannot be written: {error}")
    return Candidate("ziglang", str(shim), parts=(str(zig),))


def write_shim(zig: Path, lib: Path) -> Path:
    """Write the script that makes ziglang's clang one program; its name depends on its content: it is written once."""
    template = Path(__file__).with_name("zig_clang.sh").read_text(encoding="utf-8")
    script = template.replace("@ZIG@", shlex.quote(str(zig))).replace("@LIB@", shlex.quote(str(lib))).encode()
    path = cache_dir() / f"clang-{hashlib.sha256(script).hexdigest()[:16]}"
    if not path.is_file() or path.read_bytes() != script or not os.access(path, os.X_OK):
        _write(path, script, 0o700)
    return path


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all. Raises CheckpointError."""
    from gemma4_core.checkpoint.atomic import atomic_file

    with atomic_file(path) as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)


def what_to_install(choice: CompilerChoice) -> str:
    """One sentence for a machine without a usable compiler."""
    tried = "; ".join(f"{name}: {why}" for name, why in choice.passed)
    return f"no C compiler that knows bf16 for tinygrad ({tried[:300]}); run {INSTALL}"


# ------------------------------------------------------------------------------------------------ trying


def clang_arguments() -> list[str]:
    """The arguments with which tinygrad 0.14 runs ``CC`` here (``runtime/support/compiler_cpu.py``)."""
    name = platform.machine().lower()
    arch = ARCHITECTURES.get(name, name)
    native = {"x86_64": ["-march=native"], "arm64": ["-ffixed-x18", "-mcpu=native"]}.get(arch, [])
    flags = ["-c", "-x", "c", "-O2", "-fPIC", "-ffreestanding", "-fno-math-errno", "-nostdlib", "-fno-ident"]
    return [*flags, f"--target={arch}-none-unknown-elf", *native, "-", "-o", "-"]


def try_compiler(path: str) -> Verdict:
    """Compile a small source with bf16 as tinygrad would. Raises OSError or TimeoutExpired where it cannot run."""
    done = subprocess.run([path, *clang_arguments()], input=PROBE.encode(), capture_output=True, timeout=TRY_SECONDS)
    if done.returncode or not done.stdout.startswith(b"\x7fELF"):
        messages = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        first = next((line for line in messages if "error" in line), messages[0] if messages else "")
        return Verdict(_plain(first) or f"ended with exit code {done.returncode} and no object")
    told = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_SECONDS)
    return Verdict(None, _plain(told.stdout.decode(errors="replace").partition("\n")[0]))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()[:160]


def _try_and_store(candidate: Candidate, key: str) -> Verdict:
    assert candidate.path is not None
    try:
        verdict = try_compiler(candidate.path)
    except subprocess.TimeoutExpired:
        return Verdict(f"did not finish within {TRY_SECONDS:.0f} s")  # not stored: the next run may succeed
    except OSError as error:
        return Verdict(_plain(f"does not run: {error.strerror or error}"))
    verdicts = {**_read_verdicts(), key: verdict}
    rows = {k: [v.why, v.version] for k, v in list(verdicts.items())[-50:]}
    with contextlib.suppress(Gemma4Error, OSError):
        _write(_verdict_file(), json.dumps(rows, indent=0).encode(), 0o600)
    return verdict


def _verdict_file() -> Path:
    return cache_dir() / "compilers.json"


def _read_verdicts() -> dict[str, Verdict]:
    try:
        rows = json.loads(_verdict_file().read_text())
        return {str(key): Verdict(None if why is None else str(why), str(told)) for key, (why, told) in rows.items()}
    except Exception:  # missing, damaged, or no folder for it
        return {}


def _identity(candidate: Candidate) -> str:
    """A key that changes when the compiler, the trial or the processor does."""
    facts: list[object] = [clang_arguments(), PROBE, machine.processor()]
    for path in (candidate.path or "", *candidate.parts):
        real = os.path.realpath(path)
        try:
            status = os.stat(real)
            facts.append((path, real, status.st_mtime_ns, status.st_size))
        except OSError:
            facts.append((path, real))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------ telling tinygrad


@functools.cache
def chosen() -> CompilerChoice:
    """The choice for this process, made once from the environment as the user set it."""
    return choose(os.environ)


def configure() -> CompilerChoice:
    """Make tinygrad use the chosen compiler, even if it is already imported, and in its compile workers."""
    choice = chosen()
    if choice.path is not None:
        export(choice.path)
        separate_cache(choice)
    return choice


def export(path: str) -> None:
    """Set ``CC`` for tinygrad, which reads it once and remembers it, and for workers, which inherit it."""
    previous = os.environ.get("CC")
    os.environ["CC"] = path
    helpers = sys.modules.get("tinygrad.helpers")
    if helpers is not None and helpers.getenv("CC", "clang") != path:
        helpers.getenv.cache_clear()
    worker = sys.modules.get("tinygrad.engine.worker")
    if worker is not None and previous != path:
        worker.terminate_worker_pool()


def separate_cache(choice: CompilerChoice) -> None:
    """Give this processor and compiler a kernel cache of its own, unless the user set ``CACHEDB``.

    tinygrad compiles for "native" and keeps objects by their source alone: a home folder shared by different
    machines would hand one's instructions to another.
    """
    kernel_cache.install(hashlib.sha256(f"{machine.processor()} {choice.version}".encode()).hexdigest()[:12])
