"""Caches that cannot be written, are full, damaged, or not ours: the run goes on, or one sentence says what to set."""

from __future__ import annotations

import errno
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_tools import environment
from tinygrad import helpers

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import kernel_cache, machine
from gemma4_core.devices.kernel_cache import KernelCache
from gemma4_core.errors import DeviceError
from gemma4_core.plugins import registry

RUN = """
from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
activate("cpu", DeviceSettings())
from tinygrad import Tensor, dtypes
x = Tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtypes.bfloat16, device="CPU")
print((x @ x).float().tolist(), (x + 1).sum(0).float().tolist())
"""
ANSWER = "[[7.0, 10.0], [15.0, 22.0]] [6.0, 8.0]\n"


def run(**more: str) -> subprocess.CompletedProcess[str]:
    """Two kernels in a process of its own."""
    asked = {k: v for k, v in environment(**more).items() if k not in ("CACHEDB", "CC", "DEV")}
    return subprocess.run([sys.executable, "-c", RUN], env=asked, capture_output=True, text=True, timeout=120)


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_unwritable_cache_runs_in_a_folder_of_its_own(variable: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    more = {"XDG_CACHE_HOME": ""} | {variable: str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    done = run(**more)
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr
    [line] = done.stderr.splitlines()
    assert "XDG_CACHE_HOME" in line and str(tmp_path / "file") in line and "tmp/gemma4-" in line and len(line) < 500
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache home, and a temporary folder beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    machine._cache_folder.cache_clear()
    yield tmp_path
    machine._cache_folder.cache_clear()


def test_the_cache_folder_is_private(folders: Path) -> None:
    assert machine.cache_dir() == folders / "cache/gemma4"
    assert machine.cache_dir().stat().st_mode & 0o777 == 0o700


def test_a_link_to_another_disk_is_followed(folders: Path) -> None:
    (folders / "cache").mkdir()
    (folders / "disk").mkdir(mode=0o700)
    (folders / "cache/gemma4").symlink_to(folders / "disk")
    assert machine.cache_dir() == folders / "disk"


def test_a_folder_that_others_can_write_to_is_left_alone(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "cache/gemma4").mkdir(parents=True)
    (folders / "cache/gemma4").chmod(0o777)
    found = machine.cache_dir()
    assert found.parent == folders / "tmp" and found.stat().st_mode & 0o777 == 0o700 and machine.cache_dir() == found
    [line] = capsys.readouterr().err.splitlines()
    assert "another user" in line and "XDG_CACHE_HOME" in line


def test_a_full_cache_disk_takes_the_temporary_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full_below(folders / "cache"))
    assert machine.cache_dir().parent == folders / "tmp"


def full_below(full: Path) -> Callable[..., Any]:
    """``TemporaryFile`` on a disk without room."""
    plain = tempfile.TemporaryFile

    def opened(dir: Path, **more: Any) -> Any:
        if full in (dir, *dir.parents):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(dir=dir, **more)

    return opened


def test_no_folder_at_all_is_one_sentence(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full_below(folders))
    with pytest.raises(DeviceError, match=r"cache/gemma4: No space left on device; .* set XDG_CACHE_HOME"):
        machine.cache_dir()
    assert not list((folders / "tmp").iterdir())

    def refuses() -> str | None:
        machine.cache_dir()
        return None

    device = DeviceBackend("x", "", "X", refuses)
    assert (registry.unusable(device) or "").startswith("no folder for compiled kernels")


# ------------------------------------------------------------------------------------------------ kernels


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    """An empty cache of kernels."""
    monkeypatch.setattr(helpers, "CACHEDB", str(tmp_path / "kernels.db"))
    return KernelCache()


def entries(path: str | Path) -> list[bytes]:
    with sqlite3.connect(path) as connection:
        return [row[0] for row in connection.execute(f"SELECT val FROM 'made_{helpers.VERSION}' ORDER BY key")]


def test_kernels_are_kept_for_later_processes_and_for_tinygrad(kernels: KernelCache) -> None:
    assert kernels.get("made", "a") is None
    assert kernels.put("made", "a", b"one") == b"one"
    kernels.put("beam", {"ast": "x", "amt": 2, "quick": True}, ["opt"])
    later = KernelCache()
    assert later.get("made", "a") == b"one" and later.get("beam", {"ast": "x", "amt": 2, "quick": True}) == ["opt"]
    assert pickle.loads(entries(helpers.CACHEDB)[0]) == b"one"
    assert not kernels._failed and not later._failed


@pytest.mark.parametrize("fault", ["flipped", "cut", "of another kernel", "without digest", "text"])
def test_a_damaged_kernel_is_never_run(kernels: KernelCache, fault: str) -> None:
    kernels.put("made", "a", b"one" * 100)
    kernels.put("made", "b", b"two" * 100)
    kernels._close()
    one, two = entries(helpers.CACHEDB)
    flipped = bytearray(one)
    flipped[50] ^= 4
    bad = {"flipped": bytes(flipped), "cut": one[:60], "of another kernel": two, "without digest": one[:-32],
           "text": "x"}[fault]
    with sqlite3.connect(helpers.CACHEDB) as connection:
        connection.execute(f"UPDATE 'made_{helpers.VERSION}' SET val = ? WHERE key = 'a'", (bad,))
    assert kernels.get("made", "a") is None and kernels.get("made", "b") == b"two" * 100
    kernels.put("made", "a", b"new")
    assert KernelCache().get("made", "a") == b"new"


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\x00" + bytes(range(256)) * 64])
def test_a_file_that_is_no_database_is_made_anew(kernels: KernelCache, content: bytes) -> None:
    Path(helpers.CACHEDB).write_bytes(content)
    assert kernels.get("made", "a") is None
    kernels.put("made", "a", b"one")
    assert KernelCache().get("made", "a") == b"one"


def test_pages_that_are_damaged_cost_kernels_and_not_the_run(kernels: KernelCache) -> None:
    for number in range(200):
        kernels.put("made", f"kernel {number}", bytes([number]) * 2000)
    kernels._close()
    data = bytearray(Path(helpers.CACHEDB).read_bytes())
    for at in range(4096, len(data), 1009):
        data[at] ^= 0x55
    Path(helpers.CACHEDB).write_bytes(data)
    again = KernelCache()
    found = [again.get("made", f"kernel {number}") for number in range(200)]
    assert all(value in (None, bytes([number]) * 2000) for number, value in enumerate(found)) and None in found
    again.put("made", "kernel 7", b"new")
    assert KernelCache().get("made", "kernel 7") == b"new"


@pytest.mark.parametrize("fault", ["locked", "a folder", "others can write", "full"])
def test_a_cache_that_cannot_be_used_is_left_alone(
    kernels: KernelCache, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.put("made", "a", b"one")
    kernels._close()
    monkeypatch.setattr(kernel_cache, "LOCK_SECONDS", 0.05)
    path = Path(helpers.CACHEDB)
    other = sqlite3.connect(path, isolation_level=None)
    if fault == "locked":
        other.execute("BEGIN EXCLUSIVE")
    elif fault == "others can write":
        path.chmod(0o666)
    elif fault == "full":
        kernels._open(str(path)).execute("PRAGMA max_page_count = 4")
    else:
        other.close()
        kernel_cache.remove(str(path))
        path.mkdir()
    assert kernels.put("made", "b", b"two" * 9000) == b"two" * 9000 and kernels.get("made", "b") is None
    assert kernels.put("made", "c", b"three") == b"three"
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line and "XDG_CACHE_HOME" in line
    other.close()


def test_tinygrad_and_its_workers_use_the_checked_cache(tmp_path: Path) -> None:
    asked = {"XDG_CACHE_HOME": str(tmp_path), "PARALLEL": "2"}
    done = run(**asked)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER, "")
    assert [path.name for path in tmp_path.iterdir()] == ["gemma4"]
    [path] = (tmp_path / "gemma4").glob("kernels-*.db")
    with sqlite3.connect(path) as connection:
        [(table,)] = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = connection.execute(f"SELECT key, val FROM '{table}'").fetchall()
        name = table.rpartition("_")[0]
        assert rows and all(value[-32:] == kernel_cache.digest(name, {"key": key}, value[:-32]) for key, value in rows)
        connection.execute(f"UPDATE '{table}' SET val = substr(val, 1, 200) || x'00' || substr(val, 202)")
    done = run(**asked)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER, "")
