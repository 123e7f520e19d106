"""The bf16 format as a plugin: what it takes, what it gives to tinygrad, what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import pytest
from safetensors.numpy import save_file
from tinygrad import Tensor, dtypes

from gemma4_core.checkpoint import CheckpointFiles, blocks, write_random_checkpoint
from gemma4_core.checkpoint.blocks import SavedWeights, blocks_of
from gemma4_core.checkpoint.context import folder_context, read_context
from gemma4_core.checkpoint.convert import bfloat16_bits, convert, float32_values
from gemma4_core.checkpoint.opening import select_format
from gemma4_core.contracts import Context, DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.errors import CheckpointError, PluginError
from gemma4_core.plugins import registry
from gemma4_core.weights import DenseMatrix, DenseStack
from gemma4_plugins.formats import bf16

DEVICES = ["CPU", "PYTHON"]


@pytest.fixture(scope="module", autouse=True)
def cpu() -> None:
    """tinygrad's CPU device with whatever compiler there is."""
    activate("cpu", DeviceSettings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("bf16") / "model", "tiny-26b", towers=False)


def bits(tensor: Tensor) -> np.ndarray:
    """What lies in a realized tensor's buffer, as fp32."""
    assert tensor.uop.base.is_realized
    name = {dtypes.bfloat16: "BF16", dtypes.float16: "F16", dtypes.float32: "F32"}[tensor.dtype]
    kinds: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
    raw = np.frombuffer(tensor.uop.buffer.as_memoryview(), kinds[name])
    return float32_values(raw, name).reshape(tensor.shape)


def plain_folder(folder: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Context:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    return folder_context(folder, None, config)


# ---------------------------------------------------------------------------------------------------- matching


def test_it_comes_through_its_entry_point_and_matches(folder: Path) -> None:
    assert registry.select("format", read_context(folder)).name == "bf16"


def test_damaged_and_empty_folders_are_its_to_report(folder: Path, tmp_path: Path) -> None:
    empty = folder_context(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not bf16.matches(empty)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        bf16.open_plain(empty)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    damaged = folder_context(tmp_path)
    assert bf16.matches(damaged)
    with pytest.raises(CheckpointError, match="ends at byte"):
        bf16.open_plain(damaged)


def test_weights_of_other_kinds_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    assert not bf16.matches(folder_context(tmp_path))
    assert not bf16.matches(Context())
    packed = plain_folder(tmp_path / "int8", {"w": np.zeros((2, 2), np.int8), "v": np.zeros(2, np.float32)})
    assert not bf16.matches(packed)
    with pytest.raises(CheckpointError, match='"w" is I8'):
        bf16.open_plain(packed)


@pytest.mark.parametrize("marker", ["quantization_config", "quantization"])
def test_quantised_folders_are_refused_by_name(folder: Path, marker: str) -> None:
    context = folder_context(folder, None, {marker: {"quant_method": "bitsandbytes"}})
    assert not bf16.matches(context)
    with pytest.raises(CheckpointError, match=f"{marker} is .*bitsandbytes"):
        bf16.open_plain(context)
    assert bf16.matches(folder_context(folder, None, {marker: None}))


def test_no_format_says_how_the_weights_are_stored(folder: Path, tmp_path: Path) -> None:
    assert select_format(read_context(folder)).name == "bf16"
    marked = folder_context(folder, None, {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(PluginError, match="bitsandbytes") as caught:
        select_format(marked)
    assert "BF16" in str(caught.value) and len(str(caught.value)) < 500
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.gguf.*convert it"):
        select_format(folder_context(tmp_path))
    with pytest.raises(PluginError, match="nope"):
        select_format(marked, "nope")


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float32])
def test_every_tensor_arrives_as_stored(folder: Path, device: str, dtype: Any) -> None:
    source = bf16.open_plain(read_context(folder))
    names = [name for name, info in source.infos.items() if info.nbytes < 20_000]
    tensors = {name: source.tensor(name, device, dtype) for name in names}
    stored = {name: float32_values(np.array(source.files.array(name)), "BF16") for name in names}
    source.close()
    for name, tensor in tensors.items():
        assert tensor.dtype == dtype and tensor.device == device
        assert np.array_equal(bits(tensor), stored[name])


def test_matrices_and_stacks(folder: Path) -> None:
    source = bf16.open_plain(read_context(folder))
    prefix = "model.language_model.layers.0."
    matrix = source.matrix(prefix + "mlp.down_proj.weight", "CPU", dtypes.bfloat16)
    assert isinstance(matrix, DenseMatrix) and matrix.shape == (64, 96) and matrix.dtype == dtypes.bfloat16
    stack = source.stack(prefix + "experts.down_proj", "CPU", dtypes.float32)
    assert isinstance(stack, DenseStack) and stack.shape == (8, 64, 32) and stack.dtype == dtypes.float32
    rows = source.row_reader(prefix + "mlp.down_proj.weight", in_memory=True)
    assert np.array_equal(rows(np.array([3])), bits(matrix.tensor)[[3]])


def test_cpu_tensors_lie_on_the_file_and_may_be_updated(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    files = CheckpointFiles.open(folder)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensor = files.tensor(name, "CPU", dtypes.bfloat16)
    again = CheckpointFiles.open(folder).tensor(name, "CPU", dtypes.bfloat16)
    assert tensor.uop.buffer.options.external_ptr
    files.close()
    del files
    expected = bits(tensor) * 2
    tensor.assign(tensor * 2).realize()
    assert np.array_equal(bits(tensor), expected)
    assert np.array_equal(bits(again) * 2, expected)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("device", DEVICES)
def test_misaligned_tensors_are_copied(tmp_path: Path, device: str) -> None:
    arrays = {f"t{i}": np.random.default_rng(i).standard_normal(33).astype(np.float16) for i in range(4)}
    files = CheckpointFiles.open(plain_folder(tmp_path / "odd", arrays).folder or "")
    assert any(entry.start % 16 for entry in files.shards[0].header.tensors.values())
    for name, array in arrays.items():
        assert np.array_equal(bits(files.tensor(name, device, dtypes.float16)), array)


@pytest.mark.parametrize("device", DEVICES)
def test_large_tensors_come_in_pieces(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma4_core.checkpoint.upload.PIECE", 1000)
    monkeypatch.setattr("gemma4_core.checkpoint.upload.SYNCHRONIZE_EVERY", 3000)
    array = np.random.default_rng(0).standard_normal((37, 53), dtype=np.float32)
    files = CheckpointFiles.open(plain_folder(tmp_path / "large", {"w": array}).folder or "")
    assert np.array_equal(
        bits(files.tensor("w", device, dtypes.bfloat16)), float32_values(bfloat16_bits(array), "BF16")
    )
    monkeypatch.setattr("gemma4_core.checkpoint.upload.offsets_work", lambda device: False)
    assert np.array_equal(
        bits(files.tensor("w", device, dtypes.bfloat16)), float32_values(bfloat16_bits(array), "BF16")
    )


class SlowStaging:
    """Three slots of 64 bytes, whose copies happen when they are waited for, as late as a device may make them."""

    def __init__(self) -> None:
        self.slots = [np.zeros(64, np.uint8) for _ in range(3)]
        self.queued: dict[int, tuple[int, Any, int]] = {}
        self.copies = 0

    def copy(self, slot: int, size: int, buffer: Any, offset: int) -> None:
        assert slot not in self.queued
        self.queued[slot] = (size, buffer, offset)
        self.copies += 1

    def wait(self, slot: int) -> None:
        if slot in self.queued:
            size, buffer, offset = self.queued.pop(slot)
            buffer.get_buf("PYTHON")[offset : offset + size] = self.slots[slot][:size].tobytes()


@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
def test_tensors_are_loaded_through_what_a_device_copies_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    staging = SlowStaging()
    monkeypatch.setattr("gemma4_core.devices.staging_of", lambda device: staging)
    rng = np.random.default_rng(0)
    arrays = {f"w{n}": rng.standard_normal((n, 53), dtype=np.float32) for n in (1, 7)}
    files = CheckpointFiles.open(plain_folder(tmp_path / "staged", arrays).folder or "")
    tensors = {name: files.tensor(name, "PYTHON", getattr(dtypes, wanted)) for name in arrays}
    files.close()
    assert staging.copies == 4 + 24 and not staging.queued
    for name, array in arrays.items():
        expected = array if wanted == "float32" else float32_values(bfloat16_bits(array), "BF16")
        assert np.array_equal(bits(tensors[name]), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_integers_are_no_weights(tmp_path: Path, device: str) -> None:
    files = CheckpointFiles.open(plain_folder(tmp_path / "ints", {"w": np.zeros(4, np.int64)}).folder or "")
    with pytest.raises(CheckpointError, match=r'"w" has dtype I64'):
        files.tensor("w", device, dtypes.float32)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    files = CheckpointFiles.open(plain_folder(tmp_path / "cut", {"w": np.zeros(4000, np.float32)}).folder or "")
    with open(tmp_path / "cut" / "model.safetensors", "r+b") as file:
        file.truncate(500)
    with pytest.raises(CheckpointError, match="became shorter"):
        files.tensor("w", "PYTHON", dtypes.float32)


def test_rounding_to_bfloat16() -> None:
    values = np.float32([1.0, 1.00390625, 1.01171875, -1.00390625, 3.3895314e38, np.inf, -np.inf, np.nan, 0.0, 1e-40])
    rounded = float32_values(bfloat16_bits(values), "BF16")
    assert rounded[:4].tolist() == [1.0, 1.0, 1.015625, -1.0]  # ties go to the even neighbour
    assert rounded[4:7].tolist() == [np.float32(3.3895314e38), np.inf, -np.inf] and np.isnan(rounded[7])
    assert rounded[8] == 0 and abs(rounded[9] - 1e-40) < 1e-40
    stored = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    finite = stored[(stored & 0x7F80) != 0x7F80]
    assert np.array_equal(bfloat16_bits(float32_values(finite, "BF16")), finite)
    assert convert(np.float16([1.5]), "F16", "BF16").tolist() == [0x3FC0]
    assert np.isinf(convert(np.float32([1e30]), "F32", "F16"))[0]


# ---------------------------------------------------------------------------------------------------- writing


def loaded(folder: Path, dtype: Any) -> dict[str, Any]:
    source = bf16.open_plain(read_context(folder))
    made: dict[str, Any] = {}
    for name, info in source.infos.items():
        kind = {2: source.matrix, 3: source.stack}.get(len(info.shape), source.tensor)
        made[name] = kind(name, "CPU", dtype)
    return made


@pytest.mark.parametrize("limit", [10_000_000_000, 200_000], ids=["one", "shards"])
@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float32])
def test_saving_gives_back_the_same_numbers(folder: Path, tmp_path: Path, dtype: Any, limit: int) -> None:
    weights = [blocks_of(name, value, "matrix") for name, value in loaded(folder, dtype).items()]
    bf16.save_plain(SavedWeights(weights, limit), tmp_path, Context())
    written, before = CheckpointFiles.open(tmp_path), CheckpointFiles.open(folder)
    assert (len(written.shards) > 1) == (limit < 1_000_000)
    assert set(written) == set(before) and written.header_metadata == {"format": "pt"}
    for name in before:
        assert written.infos[name].dtype == ("BF16" if dtype == dtypes.bfloat16 else "F32")
        assert np.array_equal(
            float32_values(written.array(name), written.infos[name].dtype), float32_values(before.array(name), "BF16")
        )


def test_saving_computed_and_strided_tensors(tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = [("t", Tensor(base).transpose()), ("twice", Tensor(base) * 2), ("scalar", Tensor(base).max() - 8)]
    bf16.save_plain([blocks_of(name, tensor, "other") for name, tensor in tensors], tmp_path, Context())
    files = CheckpointFiles.open(tmp_path)
    assert np.array_equal(files.array("t"), base.T) and np.array_equal(files.array("twice"), base * 2)
    assert files.array("scalar").shape == () and files.array("scalar") == 3


def test_saving_refuses_what_no_plain_checkpoint_holds() -> None:
    with pytest.raises(CheckpointError, match='"ids" has dtype'):
        blocks_of("ids", Tensor([1, 2]), "other")


def test_weights_are_made_and_let_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    class Lazy(DenseMatrix):
        def dense(self) -> Tensor:
            made = Tensor(super().dense().numpy())
            alive.append(1)
            finalize(made.uop, alive.pop)
            return made

    most: list[int] = []
    write = blocks.host_bytes
    monkeypatch.setattr(blocks, "host_bytes", lambda value: (write(value), most.append(len(alive)))[0])
    weights = [blocks_of(f"w{i}", Lazy(Tensor.ones(4, 4).contiguous()), "matrix") for i in range(5)]
    bf16.save_plain(weights, tmp_path, Context())
    assert len(most) == 5 and max(most) <= 2


def test_config_json_is_not_the_formats_to_write(folder: Path, tmp_path: Path) -> None:
    assert bf16.save_plain([blocks_of("w", Tensor(np.float32([1])), "vector")], tmp_path, Context()) is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
