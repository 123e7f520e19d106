"""Checkpoints with random weights: complete, reproducible, of any dtype, and cheap to write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gemma4_core import registry
from gemma4_core.checkpoint import CheckpointFiles, check_tensors, write_random_checkpoint
from gemma4_core.checkpoint.convert import float32_values
from gemma4_core.config import (
    config_dict,
    ignorable,
    load_config,
    load_generation_config,
    preset_config,
    preset_dict,
)
from gemma4_core.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("plain_loops")

TINY = ["tiny-e2b", "tiny-26b", "tiny-31b"]


def values(folder: Path) -> dict[str, np.ndarray]:
    files = CheckpointFiles.open(folder)
    return {name: float32_values(files.array(name), files.infos[name].dtype) for name in files}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("options", [{}, {"towers": False}, {"text_only": True}], ids=["all", "no towers", "text"])
def test_folder_is_complete(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    write_random_checkpoint(tmp_path / "model", name, **options)
    config = load_config(tmp_path / "model")
    assert config == preset_config(name, **options)
    extra = registry.expected_tensors(config)
    check_tensors(config, CheckpointFiles.open(tmp_path / "model").infos, extra, lambda name: False)
    assert load_generation_config(tmp_path / "model", config).eos_token_ids == (1, 106, 50)


def test_the_library_reads_it(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", "tiny-26b", dtype="float32")
    ours = values(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(ours)
        assert all(np.array_equal(file.get_tensor(name), ours[name]) for name in ours)


def test_shards_hold_the_same_numbers(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "one", "tiny-e2b")
    write_random_checkpoint(tmp_path / "many", "tiny-e2b", max_shard_bytes=150_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(shards)
    sizes = [info.nbytes for info in CheckpointFiles.open(tmp_path / "one").infos.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all((tmp_path / "many" / shard).stat().st_size < 150_000 + 40_000 for shard in shards)
    one, many = values(tmp_path / "one"), values(tmp_path / "many")
    assert one.keys() == many.keys() and all(np.array_equal(one[name], many[name]) for name in one)


def test_seed_decides(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_checkpoint(tmp_path / folder, "tiny-31b", seed=seed)
    contents = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc"]
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_dtypes_and_spread(tmp_path: Path, dtype: str, stored: str) -> None:
    write_random_checkpoint(tmp_path / "model", "tiny-e2b", dtype=dtype)
    assert load_config(tmp_path / "model").dtype == dtype
    assert {info.dtype for info in CheckpointFiles.open(tmp_path / "model").infos.values()} == {stored}
    for name, array in values(tmp_path / "model").items():
        assert np.isfinite(array).all(), name
        if name.endswith("layer_scalar"):
            assert array == 1
        elif name.endswith(("input_max", "output_max")):
            assert array > 10
        elif array.ndim == 1 and name.endswith("layernorm.weight"):
            assert abs(array.mean() - 1) < 0.1 and array.std() > 0.01
        elif array.ndim == 2 and "language_model" in name:
            assert 0.6 < array.std() * array.shape[1] ** 0.5 < 1.5, name


def test_rows_differ(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", "tiny-31b")
    table = values(tmp_path / "model")["model.language_model.embed_tokens.weight"]
    assert len(np.unique(table, axis=0)) == len(table)


def test_unused_keys_and_values_as_released(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "plain", "tiny-e2b", towers=False)
    write_random_checkpoint(tmp_path / "released", "tiny-e2b", towers=False, shared_kv=True)
    plain, released = values(tmp_path / "plain"), values(tmp_path / "released")
    extra = released.keys() - plain.keys()
    assert len(extra) == 9 and all(ignorable(load_config(tmp_path / "released"), name) for name in extra)
    assert all(np.array_equal(plain[name], released[name]) for name in plain)


def test_own_config_and_files(tmp_path: Path) -> None:
    data = preset_dict("tiny-31b", towers=False)
    data["text_config"]["hidden_size"] = 40
    write_random_checkpoint(tmp_path / "a", data, extra_files={"tokenizer.json": b"{}"})
    assert load_config(tmp_path / "a").text_config.hidden_size == 40
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == b"{}"
    config = load_config(tmp_path / "a")
    write_random_checkpoint(tmp_path / "b", config)
    assert load_config(tmp_path / "b") == config and config_dict(config)["vision_config"] is None


def test_large_tensors_start_at_whole_lines(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", "tiny-e2b")
    files = CheckpointFiles.open(tmp_path / "model")
    starts = [entry.start for entry in files.shards[0].header.tensors.values() if entry.nbytes % 64 == 0]
    assert len(starts) > 100 and all(start % 64 == 0 for start in starts)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="E9B"):
        write_random_checkpoint(tmp_path / "a", "E9B")
    with pytest.raises(ConfigError, match="int8"):
        write_random_checkpoint(tmp_path / "a", "tiny-e2b", dtype="int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(CheckpointError, match="mine"):
        write_random_checkpoint(tmp_path / "mine", "tiny-e2b")


def test_memory_stays_small_and_tinygrad_out(tmp_path: Path) -> None:
    data = preset_dict("tiny-31b", towers=False)
    data["text_config"] |= {"vocab_size": 160_000, "hidden_size": 1024}  # a table of 328 MB
    code = f"""
import sys
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.devices.memory import peak_rss_bytes
write_random_checkpoint({str(tmp_path / "model")!r}, {data!r})
print(peak_rss_bytes(), "tinygrad" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, imported = done.stdout.split()
    weights = tmp_path / "model" / "model.safetensors"
    size = weights.stat().st_size
    weights.unlink()
    assert int(peak) < 300_000_000 < size and imported == "False"
