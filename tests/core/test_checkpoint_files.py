"""Checkpoint folders: one file, shards with an index, and what an index may not do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemma4_core.checkpoint import CheckpointFiles
from gemma4_core.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def array(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two shards with an index."""
    home = tmp_path / "checkpoint"
    home.mkdir()
    save_file({"a": array(1, 3, 4), "b": array(2, 5)}, home / "one.safetensors")
    save_file({"c": array(3, 2, 2)}, home / "two.safetensors")
    write_index(home, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    yield home


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        CheckpointFiles.open(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_shards(folder: Path) -> None:
    files = CheckpointFiles.open(folder)
    assert set(files) == {"a", "b", "c"}
    assert np.array_equal(files.array("a"), array(1, 3, 4))
    assert np.array_equal(files.array("c"), array(3, 2, 2))


def test_shard_in_a_subfolder(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "two.safetensors").rename(folder / "parts" / "two.safetensors")
    write_index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "parts/two.safetensors"})
    assert "c" in CheckpointFiles.open(folder)


def test_single_file_comes_before_the_index(folder: Path) -> None:
    save_file({"only": array(4, 2)}, folder / "model.safetensors")
    assert set(CheckpointFiles.open(folder)) == {"only"}


def test_tensor_that_the_index_does_not_list_is_still_seen(folder: Path) -> None:
    write_index(folder, {"a": "one.safetensors", "c": "two.safetensors"})
    assert "b" in CheckpointFiles.open(folder).infos


def test_read_only_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert np.array_equal(CheckpointFiles.open(folder).array("b"), array(2, 5))
    finally:
        folder.chmod(0o755)


def test_arrays_outlive_the_files(folder: Path) -> None:
    files = CheckpointFiles.open(folder)
    held = files.array("a")
    files.close()
    del files
    assert np.array_equal(held, array(1, 3, 4))


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_of_a_table(folder: Path, in_memory: bool) -> None:
    files = CheckpointFiles.open(folder)
    read = files.rows("a", in_memory)
    files.close()
    assert np.array_equal(read(np.array([[2, 0], [1, 1]])), array(1, 3, 4)[[[2, 0], [1, 1]]])


def test_a_run_of_rows_does_not_map_the_file(folder: Path) -> None:
    files = CheckpointFiles.open(folder)
    read = files.rows("a", False)
    shard = next(shard for shard in files.shards if "a" in shard.header.tensors)
    assert np.array_equal(read(np.arange(1, 3)), array(1, 3, 4)[1:3]) and shard._mapping is None
    files.close()
    assert shard._mapping is not None and np.array_equal(read(np.arange(1, 3)), array(1, 3, 4)[1:3])
    with pytest.raises(IndexError):
        read(np.arange(2, 4))
    del read
    again = CheckpointFiles.open(folder)
    again.rows("a", False)
    again.close()
    assert all(shard._mapping is None for shard in again.shards)


def test_missing_shards_are_counted_and_named(folder: Path) -> None:
    (folder / "one.safetensors").unlink()
    (folder / "two.safetensors").unlink()
    message = refused(folder)
    assert "2 files" in message and "one.safetensors" in message and "two.safetensors" in message


@pytest.mark.parametrize(
    "file",
    ["../secret.safetensors", "/etc/passwd", "parts/../../secret.safetensors", "C:\\x", "..\\x", "", "a\0b", "."],
)
def test_paths_out_of_the_folder(folder: Path, file: str) -> None:
    save_file({"c": array(3, 2, 2)}, folder.parent / "secret.safetensors")
    write_index(folder, {"c": file})
    message = refused(folder)
    assert INDEX in message or "regular file" in message


def test_linked_shards_open(folder: Path) -> None:
    """The name in the index stays in the folder; where a link leads is the owner's affair."""
    (folder.parent / "other disk").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (folder / name).rename(folder.parent / "other disk" / name)
        (folder / name).symlink_to(f"../other disk/{name}")
    assert set(CheckpointFiles.open(folder)) == {"a", "b", "c"}
    (folder.parent / "link").symlink_to(folder)
    assert set(CheckpointFiles.open(folder.parent / "link")) == {"a", "b", "c"}
    parts = folder.parent / "parts"
    (folder.parent / "other disk").rename(parts)
    (folder / "parts").symlink_to("../parts")
    write_index(folder, {"a": "parts/one.safetensors", "b": "parts/one.safetensors", "c": "parts/two.safetensors"})
    assert set(CheckpointFiles.open(folder)) == {"a", "b", "c"}


@pytest.mark.parametrize("target", ["../nowhere", "two.safetensors", "/dev/zero", ".."])
def test_linked_shards_that_lead_to_no_file(folder: Path, target: str) -> None:
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").symlink_to(target)
    message = refused(folder)
    assert "two.safetensors" in message
    assert any(said in message for said in ("link to nothing", "symbolic links", "not a regular file"))


def test_single_file_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("absent")
    assert "model.safetensors: No such file" in refused(tmp_path)


@pytest.mark.parametrize("file", ["x" * 300 + ".safetensors", "y/" * 3000 + "z"], ids=["name", "path"])
def test_file_names_in_an_index_too_long(folder: Path, file: str) -> None:
    write_index(folder, {"a": file})
    message = refused(folder)
    assert INDEX in message and file[:30] in message and "too long" in message


def test_file_names_in_an_index_that_are_no_text(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {"a": "one\\ud800.safetensors"}}')
    message = refused(folder)
    assert INDEX in message and "one" in message and "surrogate" in message
    (folder / INDEX).write_text('{"weight_map": {"\\udfff.weight": "one.safetensors"}}')
    assert "surrogate" in refused(folder)


def test_a_name_twice_in_an_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    assert '"a" twice' in refused(folder)


def test_a_file_by_two_names_in_an_index_is_opened_once(folder: Path) -> None:
    write_index(folder, {"a": "one.safetensors", "b": "./one.safetensors", "c": "two.safetensors"})
    assert set(CheckpointFiles.open(folder)) == {"a", "b", "c"}


def test_links_of_a_hugging_face_cache_are_followed(folder: Path) -> None:
    repository = folder.parent / "models--google--gemma"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        os.rename(path, repository / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    assert set(CheckpointFiles.open(snapshot)) == {"a", "b", "c"}


def test_tensors_that_are_not_where_the_index_says(folder: Path) -> None:
    write_index(
        folder, {"a": "one.safetensors", "b": "two.safetensors", "gone": "two.safetensors", "c": "two.safetensors"}
    )
    message = refused(folder)
    assert "2 tensors" in message and '"b"' in message and '"gone"' in message


def test_tensor_in_two_shards(folder: Path) -> None:
    save_file({"a": array(1, 3, 4), "c": array(3, 2, 2)}, folder / "two.safetensors")
    message = refused(folder)
    assert '"a"' in message and "one.safetensors and two.safetensors" in message


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": None}, "x"])
def test_broken_weight_map(folder: Path, weight_map: Any) -> None:
    write_index(folder, weight_map)
    assert "weight_map" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_broken_index(folder: Path, content: bytes) -> None:
    (folder / INDEX).write_bytes(content)
    assert INDEX in refused(folder)


def test_shard_that_is_a_pipe_or_a_folder(folder: Path) -> None:
    (folder / "two.safetensors").unlink()
    os.mkfifo(folder / "two.safetensors")
    assert "not a regular file" in refused(folder)
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").mkdir()
    assert "not a regular file" in refused(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "convert it"),
        ("model-00001-of-00002.safetensors", "index file is missing"),
        (None, "fetch"),
    ],
)
def test_no_weights_that_we_read(tmp_path: Path, name: str | None, said: str) -> None:
    if name:
        (tmp_path / name).write_bytes(b"x")
    message = refused(tmp_path)
    assert said in message and "model.safetensors" in message and (name is None or name in message)


def test_unknown_tensor(folder: Path) -> None:
    with pytest.raises(CheckpointError, match='no tensor "nope"'):
        CheckpointFiles.open(folder).bytes("nope")


def test_open_files_do_not_pile_up_after_a_fault(folder: Path) -> None:
    (folder / "two.safetensors").write_bytes(b"broken")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        refused(folder)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before + 2
