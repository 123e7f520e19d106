"""Folders and files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import gemma4_core.checkpoint.atomic as atomic
from gemma4_core.checkpoint import Planned, atomic_file, atomic_folder, write_shards
from gemma4_core.errors import CheckpointError

PLAN = [Planned("w", "BF16", (4,))]


def fill(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_text(text)


def checkpoint(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    fill(folder, text)
    return folder


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_new_folder_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model"
    with atomic_folder(target) as temporary:
        fill(temporary, "new")
        assert temporary.parent == target.parent and not target.exists()
    assert (target / "config.json").read_text() == "new"
    assert not left_over(target.parent)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_relative_path_and_trailing_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_folder("out/") as temporary:
        fill(temporary, "new")
    assert (tmp_path / "out" / "config.json").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    target = checkpoint(tmp_path / "model")
    (target / "tokenizer.json").write_text("old")
    with atomic_folder(target) as temporary:
        fill(temporary, "new")
        assert (target / "config.json").read_text() == "old"
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert (target / "config.json").read_text() == "new" and not left_over(tmp_path)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system call is theirs")
def test_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path / "one", "1"), checkpoint(tmp_path / "other", "2")
    if atomic.exchange(one, other):  # some file systems cannot
        assert (one / "config.json").read_text() == "2" and (other / "config.json").read_text() == "1"
    assert atomic.exchange(one, tmp_path / "absent") is False


def test_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as temporary:
        fill(temporary, "new")
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    real = checkpoint(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with atomic_folder(tmp_path / "link") as temporary:
        fill(temporary, "new")
    assert (tmp_path / "link").is_symlink() and (real / "config.json").read_text() == "new"


def test_anything_else_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, said in [("notes", "neither empty nor a checkpoint"), ("file", "is a file")]:
        with pytest.raises(CheckpointError, match=said) as caught, atomic_folder(tmp_path / name):
            pytest.fail("must not get here")
        assert name in str(caught.value)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine" and not left_over(tmp_path)


def test_own_rule_for_what_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "lora.bin").write_text("old")
    with atomic_folder(tmp_path / "adapter", lambda folder: (folder / "lora.bin").exists()) as temporary:
        (temporary / "lora.bin").write_text("new")
    assert (tmp_path / "adapter" / "lora.bin").read_text() == "new"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_fault_leaves_everything_as_it_was(tmp_path: Path, kind: type[BaseException]) -> None:
    target = checkpoint(tmp_path / "model")
    with pytest.raises(kind), atomic_folder(target) as temporary:
        fill(temporary, "new")
        raise kind("stop")
    with pytest.raises(kind), atomic_folder(tmp_path / "x" / "y" / "fresh"):
        raise kind("stop")
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught, atomic_folder(tmp_path / "a" / "model") as temporary:
        fill(temporary, "new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in str(caught.value) and "model" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # root may write anywhere, so permissions alone would not do
    with pytest.raises(CheckpointError, match="Permission denied"), atomic_folder(tmp_path / "model"):
        pytest.fail("must not get here")
    assert not list(tmp_path.iterdir())


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written"), atomic_folder(tmp_path / "file" / "model"):
        pytest.fail("must not get here")
    assert (tmp_path / "file").read_text() == "mine"


def test_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "data.csv"
    target.write_text("old")
    with atomic_file(target, "w") as file:
        file.write("néw")
        assert target.read_text() == "old"
    assert target.read_text(encoding="utf-8") == "néw" and not left_over(tmp_path)
    with atomic_file(target) as file:
        file.write(b"\0\1")
    assert target.read_bytes() == b"\0\1"


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_file_is_untouched_by_a_fault(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "data.csv"
    target.write_text("old")
    expected = KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else CheckpointError
    with pytest.raises(expected), atomic_file(target, "w") as file:
        file.write("new")
        raise fault
    assert target.read_text() == "old" and not left_over(tmp_path)


def test_file_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"data\.csv"), atomic_file(tmp_path / "no" / "data.csv"):
        pytest.fail("must not get here")


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is not an ordinary file"), atomic_file(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and len(list(tmp_path.iterdir())) == 1


def test_writer_refuses_before_it_writes_where_room_is_short(tmp_path: Path) -> None:
    huge = [Planned("w", "F32", (1 << 40, 1 << 10))]
    with (
        pytest.raises(CheckpointError, match=r"free there, .* TB are needed"),
        atomic_folder(tmp_path / "model") as temporary,
    ):
        write_shards(temporary, huge, lambda planned: pytest.fail("must not get here"))
    assert not list(tmp_path.iterdir())


def test_writer_counts_bytes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="7 bytes, but 8 were planned"):
        write_shards(tmp_path, PLAN, lambda planned: [b"123", b"4567"])


def test_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    code = f"""
import resource
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_random_checkpoint({str(tmp_path / "model")!r}, "tiny-e2b")
except CheckpointError as fault:
    print(fault)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout and done.stdout.count("\n") == 1 and str(tmp_path / "model") in done.stdout
    assert (tmp_path / "model" / "config.json").read_text() == "old" and not left_over(tmp_path)


def test_an_appended_line_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write, room = tmp_path / "lines", os.write, [6]

    def short(handle: int, data: bytes) -> int:
        taken = min(3, room[0], len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= taken
        return write(handle, data[:taken])

    monkeypatch.setattr("gemma4_core.checkpoint.atomic.os.write", short)
    atomic.append_line(path, "first")
    with pytest.raises(CheckpointError, match="the disk is full"):
        atomic.append_line(path, "second")
    room[0] = 4
    with pytest.raises(CheckpointError):
        atomic.append_line(path, "third")
    assert path.read_text() == "first\n"
