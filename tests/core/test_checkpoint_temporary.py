"""What a killed writer leaves is removed by the next one; what is not ours, or is held, never is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_tools import environment

from gemma4_core.checkpoint import atomic, atomic_file, atomic_folder, temporary
from gemma4_core.checkpoint.temporary import HOST, temporary_path
from gemma4_core.errors import CheckpointError

WRITER = """
import sys, time
from pathlib import Path
from gemma4_core.checkpoint import atomic_file, atomic_folder
if sys.argv[2] == "folder":
    with atomic_folder(sys.argv[1]) as folder:
        (folder / "config.json").write_text("half")
        print("ready", flush=True)
        time.sleep(600)
with atomic_file(sys.argv[1], "w") as file:
    file.write("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(target: Path, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(target), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def write(target: Path, text: str = "new") -> None:
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text(text)
        (folder / "model.safetensors").write_text(text)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_left_over_of_a_killed_writer_goes_with_the_next_save(tmp_path: Path, kind: str) -> None:
    """Also where the next save is one of a neighbour."""
    living = start(tmp_path / "living", kind)
    try:
        held = names(tmp_path)
        assert len(held) == 2
        for _ in range(3):
            kill(start(tmp_path / "model", kind))
        assert len(names(tmp_path)) <= 4  # the last one's
        write(tmp_path / "other")
        assert names(tmp_path) == sorted([*held, "other"])
    finally:
        kill(living)
    with atomic_file(tmp_path / "notes.csv", "w") as file:
        file.write("x")
    assert names(tmp_path) == ["notes.csv", "other"]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = [".model.0123456789ab.tmp", f".model.{HOST}012345.tmp", ".model.0123456789ab.lock", ".x.swp", ".lock",
              f".folder.{HOST}012345.lock"]
    for name in others[2:5]:
        (tmp_path / name).write_text("another program's")
    for name in (others[0], others[1], others[5]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("x")
    write(tmp_path / "model")
    assert names(tmp_path) == sorted([*others, "model"])


def test_left_over_of_another_host_goes_after_a_day(tmp_path: Path) -> None:
    """Its locks may not be seen here."""
    lock, folder = tmp_path / ".model.0123456789ab.lock", tmp_path / ".model.0123456789ab.tmp"
    lock.write_text(f"{temporary.MARK}\nmodel")
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    write(tmp_path / "model")
    assert folder.exists() and lock.exists()
    old = time.time() - temporary.IDLE_SECONDS - 60
    for path in (lock, folder, folder / "model.safetensors"):
        os.utime(path, (old, old))
    write(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_without_locks_only_what_is_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(start(tmp_path / "model", "folder"))
    monkeypatch.setattr(temporary, "lock", lambda file: None)
    write(tmp_path / "model")
    assert len(names(tmp_path)) == 3
    monkeypatch.setattr(temporary, "IDLE_SECONDS", 0)
    write(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_a_checkpoint_that_was_moved_away_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system cannot exchange folders there is a moment without either; a kill then loses nothing."""
    write(tmp_path / "model", "old")
    lock = tmp_path / f".model.{HOST}012345.lock"
    lock.write_text(f"{temporary.MARK}\nmodel")
    (tmp_path / "model").rename(lock.with_suffix(".old"))
    write(tmp_path / "other")
    assert names(tmp_path) == ["model", "other"] and (tmp_path / "model/config.json").read_text() == "old"
    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    write(tmp_path / "model", "new")
    assert names(tmp_path) == ["model", "other"] and (tmp_path / "model/config.json").read_text() == "new"


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def many(number: int) -> None:
        try:
            for _ in range(40):
                write(tmp_path / "model", f"{number}" * 100)
                write(tmp_path / f"own-{number}")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and names(tmp_path) == ["model", *(f"own-{number}" for number in range(4))]
    assert len({path.read_text() for path in (tmp_path / "model").iterdir()}) == 1


@pytest.mark.parametrize("overwrite", [True, False])
def test_another_writer_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    """A folder that appears between the look at the target and the swap is treated as one that was there before."""
    target, replace = tmp_path / "model", os.replace

    def late(one: Path, other: Path) -> None:
        if other == target and not target.exists():
            target.mkdir()
            for name in ("config.json", "model.safetensors"):
                (target / name).write_text("other")
        replace(one, other)

    monkeypatch.setattr(os, "replace", late)
    if overwrite:
        write(target, "own")
    else:
        with pytest.raises(CheckpointError, match="holds a checkpoint already"), atomic_folder(
            target, overwrite=False
        ) as folder:
            (folder / "config.json").write_text("own")
            (folder / "model.safetensors").write_text("own")
    assert names(tmp_path) == ["model"]
    assert (target / "config.json").read_text() == ("own" if overwrite else "other")


def test_long_names_of_targets(tmp_path: Path) -> None:
    name = "模型" * 40  # 240 bytes
    write(tmp_path / name)
    with temporary_path(tmp_path / name) as path:
        assert len(os.fsencode(path.name)) < 130
    assert names(tmp_path) == [name]
