"""Formats of other packages: quantise, open, run, save, fuse and back to ordinary weights, with the right numbers."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import four_bits
import numpy as np
import pytest
from cli_tools import failure
from example_plugins import EXAMPLE
from reference_data import load
from test_plugins_guide import blocks, section

from gemma4_core import load_pretrained, registry, save_training_checkpoint
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.convert import bfloat16_bits
from gemma4_core.checkpoint.opening import open_checkpoint, select_format
from gemma4_core.quantize import quantize

sys.path.append(str(EXAMPLE / "src"))

from gemma4_example import npz

pytestmark = pytest.mark.usefixtures("plain_loops")

ROOT = Path(__file__).parents[2]
ADAPTERS = ROOT / "plugins" / "gemma4-lora" / "tests" / "reference"
FORMATS = ("npz", "json", "four-bits")
IDS = [[5, 9, 3, 7, 11]]


@pytest.fixture(scope="module", autouse=True)
def outside_formats() -> Iterator[None]:
    """The example package's format, the guide's, and one of 4 bits."""
    guide = types.ModuleType("guide_format")
    exec(blocks("python", section("`gemma4_checkpoint_formats`"))[0], guide.__dict__)
    found = {"npz-here": npz, "json-here": guide, "four-bits-here": four_bits}
    for name, module in found.items():
        registry.register(module, name)
    yield
    for name in found:
        registry.unregister(name)


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    """Every weight in fp32."""
    from tinygrad import dtypes

    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.weights.tensor(name, "PYTHON", dtypes.float32).numpy() for name in checkpoint.infos}


def logits(folder: Path, **options: Any) -> np.ndarray:
    model = load_pretrained(folder, device="cpu", dtype="float32", **options)
    return model.forward_ids(IDS)[0].numpy()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_format_plugins(tmp_path: Path, name: str, family: str) -> None:
    source, made = load(family).folder, tmp_path / "made"
    quantize(source, made, name)
    assert select_format(read_context(made)).name == name
    before, after = rows_of(source), rows_of(made)
    assert before.keys() == after.keys()
    for key, values in before.items():
        if name != "four-bits" or values.ndim < 2 or values.shape[-1] % 2 or "router" in key:
            assert np.array_equal(values, after[key]), key
        else:
            step = np.abs(values).max(-1, keepdims=True) / 7
            assert (np.abs(values - after[key]) <= 0.501 * step).all() and (values != after[key]).any(), key
    # open and run
    model = load_pretrained(made, device="cpu", dtype="float32")
    assert model.format_name == name and len([*model.generate(IDS[0], 3, stop_ids=())]) == 3
    found = model.forward_ids(IDS)[0].numpy()
    # save the model in its own format, and as ordinary weights: nothing moves
    save_training_checkpoint(model, tmp_path / "saved", quantize=name)
    save_training_checkpoint(model, tmp_path / "ordinary")
    for folder in (tmp_path / "saved", tmp_path / "ordinary"):
        again = rows_of(folder)
        assert all(np.allclose(again[key], values, rtol=1e-6, atol=0) for key, values in after.items())
    assert np.abs(logits(tmp_path / "ordinary") - found).max() < 1e-4 * found.std()
    if name != "four-bits":
        assert np.array_equal(found, logits(source))
    # back to bf16, from the files
    quantize(made, tmp_path / "back", "bf16")
    back = rows_of(tmp_path / "back")
    for key, values in after.items():
        assert np.array_equal(bfloat16_bits(back[key]), bfloat16_bits(values)), key
    assert load_pretrained(tmp_path / "back", device="cpu").format_name == "bf16"


@pytest.mark.parametrize("name", FORMATS)
def test_fuse_on_format_plugins(tmp_path: Path, name: str) -> None:
    fusing = pytest.importorskip("gemma4_lora.fusing")
    source = load("dense").folder
    quantize(source, tmp_path / "made", name)
    fusing.fuse(tmp_path / "made", [ADAPTERS / "dense"], tmp_path / "fused")
    fusing.fuse(tmp_path / "made", [ADAPTERS / "dense"], tmp_path / "ordinary", format="bf16", dtype="float32")
    assert select_format(read_context(tmp_path / "fused")).name == name
    base, fused, ordinary = (rows_of(tmp_path / folder) for folder in ("made", "fused", "ordinary"))
    changed = {key for key, values in base.items() if not np.array_equal(values, ordinary[key])}
    assert len(changed) == 18
    for key, values in ordinary.items():
        step = np.abs(values).max() / 7 if name == "four-bits" and key in changed else 0
        assert np.abs(fused[key] - values).max() <= 0.51 * step, key


def test_quantised_weights_are_not_quantised_twice(tmp_path: Path) -> None:
    quantize(load("dense").folder, tmp_path / "four", "four-bits")
    line = failure("quantize", "-m", tmp_path / "four", "--out", tmp_path / "again")
    assert "quantised already" in line and "I4" in line and not (tmp_path / "again").exists()


def test_match_on_anything(tmp_path: Path) -> None:
    """The guide's JSON format beside bf16, which does not claim a folder without safetensors."""
    quantize(load("dense").folder, tmp_path / "made", "json")
    assert not (tmp_path / "made" / "model.safetensors").exists()
    matching = registry.matching("format", read_context(tmp_path / "made"))
    assert [description.name for description in matching] == ["json"]


def test_a_folder_of_a_plugins_files_is_replaced_and_others_are_not(tmp_path: Path) -> None:
    quantize(load("dense").folder, tmp_path / "made", "npz")
    quantize(load("moe").folder, tmp_path / "made", "npz")
    assert load_pretrained(tmp_path / "made", device="cpu").config.text_config.enable_moe_block
    (tmp_path / "made" / "thesis.txt").write_text("years of work")
    assert "thesis.txt" in failure("quantize", "-m", load("dense").folder, "--out", tmp_path / "made", "--overwrite",
                                   "--format", "npz")
