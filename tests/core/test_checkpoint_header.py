"""Safetensors headers from strangers: each fault is one line that names the file and the tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemma4_core.checkpoint import CheckpointFiles
from gemma4_core.errors import CheckpointError


def entry(dtype: str = "BF16", shape: Any = (2, 2), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def encode(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refused(folder: Path, content: bytes) -> str:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        CheckpointFiles.open(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and "model.safetensors" in message
    return message


def test_a_file_of_the_library_reads_back(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.float16([1, 2]),
        "s": np.array(3.0, np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = CheckpointFiles.open(tmp_path)
    assert set(files) == {"a", "b", "s"} and files.header_metadata == {"format": "pt"}
    for name, array in arrays.items():
        info = files.infos[name]
        assert (info.shape, info.nbytes) == (array.shape, array.nbytes)
        assert np.array_equal(files.array(name), array)
        assert bytes(files.bytes(name)) == array.tobytes()
    assert files.infos["a"].dtype == "F16"


def test_an_empty_header_is_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(encode({}, b""))
    assert not CheckpointFiles.open(tmp_path).infos


@pytest.mark.parametrize("size", [0, 1, 7])
def test_too_short_for_a_length(tmp_path: Path, size: int) -> None:
    assert f"holds {size} bytes" in refused(tmp_path, b"\1" * size)


@pytest.mark.parametrize("length", [9, 1 << 30, (1 << 64) - 1])
def test_header_length_beyond_the_file(tmp_path: Path, length: int) -> None:
    assert f"header of {length} bytes" in refused(tmp_path, encode(b"{}", b"", length))


def test_header_length_beyond_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(b"{}", b"", 100 << 20))
    os.truncate(path, 200 << 20)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="more than any checkpoint needs"):
        CheckpointFiles.open(tmp_path)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff\xff", b"[1]", b"null", b"[" * 50_000, b'{"a": ' + b"1" * 6000 + b"}", b'{"a":1}x'],
    ids=["empty", "cut", "bytes", "list", "null", "deep", "digits", "trailing"],
)
def test_broken_json(tmp_path: Path, header: bytes) -> None:
    assert "header" in refused(tmp_path, encode(header))


@pytest.mark.parametrize(
    "declared",
    [
        5,
        None,
        {},
        entry(dtype="INT4"),
        entry(dtype=16),  # type: ignore[arg-type]
        {"dtype": "BF16", "shape": [2, 2]},
        entry(shape=[-2, -2]),
        entry(shape=[2.0, 2]),
        entry(shape=[True, 4]),
        entry(shape=4),
        entry(shape=[1] * 9),
        entry(shape=[1 << 62, 1 << 62]),
        entry(shape=[10**40]),
        entry(shape=[4, 2]),
        entry(offsets=[0]),
        entry(offsets=[8, 0]),
        entry(offsets=[-8, 0]),
        entry(offsets=["0", "8"]),
        entry(offsets=[0, 8.0]),
        entry(offsets=None),
    ],
)
def test_bad_declaration_names_the_tensor(tmp_path: Path, declared: Any) -> None:
    assert '"model.bad.weight"' in refused(tmp_path, encode({"model.bad.weight": declared}))


def test_shape_and_bytes_disagree(tmp_path: Path) -> None:
    message = refused(tmp_path, encode({"w": entry("F32")}))
    assert '"w"' in message and "takes 16 bytes" in message


def test_truncated_data(tmp_path: Path) -> None:
    message = refused(tmp_path, encode({"w": entry()}, b"\0" * 7))
    assert '"w"' in message and "ends at byte" in message


@pytest.mark.parametrize(
    ("second", "how"), [((4, 12), "overlaps"), ((0, 8), "overlaps"), ((10, 18), "leaves a hole after")]
)
def test_overlap_and_hole(tmp_path: Path, second: tuple[int, int], how: str) -> None:
    message = refused(tmp_path, encode({"one": entry(), "two": entry(offsets=second)}, b"\0" * 18))
    assert how in message and '"one"' in message and '"two"' in message


def test_hole_before_the_first_tensor_and_after_the_last(tmp_path: Path) -> None:
    assert "hole" in refused(tmp_path, encode({"w": entry(offsets=(8, 16))}, b"\0" * 16))
    assert "3 bytes after its last tensor" in refused(tmp_path, encode({"w": entry()}, b"\0" * 11))


def test_name_twice(tmp_path: Path) -> None:
    one = json.dumps(entry())
    assert '"w" twice' in refused(tmp_path, encode(f'{{"w": {one}, "w": {one}}}'.encode()))


@pytest.mark.parametrize("metadata", [[], {"a": 1}, "text"])
def test_metadata_must_be_text(tmp_path: Path, metadata: Any) -> None:
    assert "__metadata__" in refused(tmp_path, encode({"__metadata__": metadata, "w": entry()}))


def test_odd_names_stay_on_one_line(tmp_path: Path) -> None:
    refused(tmp_path, encode({"evil\n\x1b[31m" + "x" * 9000: entry("NOPE")}))


def test_zero_sized_tensors_are_no_overlap(tmp_path: Path) -> None:
    header = {"w": entry(), "none": entry(shape=[0, 4], offsets=(8, 8)), "nil": entry(shape=[0], offsets=(0, 0))}
    (tmp_path / "model.safetensors").write_bytes(encode(header))
    assert CheckpointFiles.open(tmp_path).infos["none"].shape == (0, 4)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_escapes_as_another_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(encode({"a": entry(), "b": entry(offsets=(8, 16))}, b"\0" * 16))
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(0, len(content) - 16))] = int(rng.integers(256))
    (tmp_path / "model.safetensors").write_bytes(bytes(content[: int(rng.integers(1, len(content) + 1))]))
    try:
        CheckpointFiles.open(tmp_path)
    except CheckpointError as fault:
        assert "\n" not in str(fault)


def test_quadratic_header(tmp_path: Path) -> None:
    """Duplicate names among very many: refused by number, by size, or found with a set."""
    one = '"%s": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    assert '"n89999" twice' in refused(
        tmp_path, encode(("{" + ", ".join(one % f"n{i}" for i in [*range(90_000), 89_999]) + "}").encode())
    )
    many = ("{" + ", ".join(one % f"n{i % 1000}" for i in range(200_000)) + "}").encode()
    assert "more than a million values" in refused(tmp_path, encode(many))
    assert "more than any checkpoint needs" in refused(tmp_path, encode(many * 2))


def test_json_size_of_a_header(tmp_path: Path) -> None:
    assert "more than a million values" in refused(tmp_path, encode(b'{"a": [' + b"[]," * (2 << 20) + b"[]]}"))


@pytest.mark.parametrize("start", ["\ufeff", " ", "\n"])
def test_header_begins_with_its_object(tmp_path: Path, start: str) -> None:
    assert "must be a JSON object" in refused(tmp_path, encode((start + "{}").encode()))


def test_name_of_a_tensor_that_is_no_text(tmp_path: Path) -> None:
    declared = '{"w\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'
    assert "surrogate" in refused(tmp_path, encode(declared.encode()))
