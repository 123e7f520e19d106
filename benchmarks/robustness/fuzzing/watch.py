"""Side effects of a case: paths opened, processes started, memory used, text on stdout and stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATH_EVENTS = {
    "open": (0,), "os.listdir": (0,), "os.scandir": (0,), "os.chdir": (0,), "os.mkdir": (0,), "os.rmdir": (0,),
    "os.remove": (0,), "os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,), "os.truncate": (0,),
    "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
}
"""Audit events, with the positions of arguments that are paths being opened or changed."""
PROCESS_EVENTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system")
NETWORK_EVENTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROGRAMS = ("python", "clang", "cc", "gcc", "zig", "ld", "nvidia-smi", "uname", "sysctl", "ldconfig", "sh", "objdump")
"""Programs that may be started: our own workers, compilers, and tools that describe the machine."""


def _existing(*names: str | None) -> tuple[str, ...]:
    """These paths as they are and with links resolved, each ending in a separator."""
    given = [name for name in names if name]
    return tuple({os.path.join(form(name), "") for name in given for form in (os.path.abspath, os.path.realpath)})


READABLE = _existing(
    sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(ROOT / "src"),
    str(ROOT / "plugins"), str(ROOT / "benchmarks" / "robustness"), "/usr/lib", "/usr/share", "/lib", "/proc", "/sys",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/ssl", *sys.path,
)
"""Python, libraries and our own sources."""
SINGLE = {
    "/dev/null", "/dev/urandom", "/dev/shm", "/dev/tty", "/dev/kfd", "/dev/nvidiactl", "/dev/kgsl-3d0", "/proc", "/sys",
    "/etc/os-release", "/usr/lib",
}


class Watch:
    """The audit hook of a worker: it records what a running case touches outside its folder."""

    def __init__(self) -> None:
        caches = [os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~/.cache"), os.environ.get("HF_HOME")]
        self._writable = _existing(*caches, tempfile.gettempdir())
        self._inside: tuple[str, ...] = ()
        self._on = False
        self._free = False
        self.outside: list[str] = []
        sys.addaudithook(self._heard)

    def start(self, folder: Path, free: bool) -> None:
        """Start to watch a case. With ``free`` any file may be read: its paths are a user's own."""
        self._inside, self.outside, self._free = _existing(str(folder)), [], free
        self._on = True

    def stop(self) -> list[str]:
        """What was touched outside."""
        self._on = False
        return self.outside

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in PATH_EVENTS:
            for place in PATH_EVENTS[event]:
                writes = event != "open" and event not in ("os.listdir", "os.scandir", "os.chdir")
                flags = args[2] if event == "open" and len(args) > 2 and isinstance(args[2], int) else 0
                self._path(event, args[place], writes or bool(flags & WRITING))
        elif event in NETWORK_EVENTS:
            self.outside.append(f"{event} {args[1:]!r}"[:200])
        elif event in PROCESS_EVENTS:
            program = os.path.basename(os.fsdecode(args[0] or "")) if isinstance(args[0], str | bytes) else str(args[0])
            if not program.startswith(PROGRAMS):
                self.outside.append(f"{event} {program}"[:200])

    def _path(self, event: str, path: Any, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is already open
        name = os.path.abspath(os.fsdecode(path))
        slashed = os.path.join(name, "")
        if slashed.startswith(self._inside) or slashed.startswith(self._writable):
            return
        if not writes and (self._free or slashed.startswith(READABLE)):
            return
        if name in SINGLE or "__pycache__" in name:
            return
        self.outside.append(f"{'writes' if writes else 'reads'} {name} ({event})"[:300])


def memory() -> tuple[int, int]:
    """Bytes of memory that this process uses, and its peak."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmRSS"].split()[0]) << 10, int(fields["VmHWM"].split()[0]) << 10
    except (OSError, KeyError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return most, most


def forget_peak() -> None:
    """Reset this process's peak memory to its current use, if the system can, so that the peak covers one case only and
    not earlier ones, or making a case's files."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def limit_memory(more: int) -> None:
    """Limit this process to this many more bytes of address space, so that no case can fill the machine's memory."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Output:
    """Descriptors 1 and 2 of this process, redirected to a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)

    def taken(self) -> str:
        """What was written since the last call."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        size = os.fstat(self._file).st_size
        if not size:
            return ""
        text = os.pread(self._file, 4000, 0).decode("utf-8", "replace")
        os.ftruncate(self._file, 0)
        return text
