"""The int8 format: what it stores, how near it is, and folders that disagree with themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference_data import load, load_multimodal
from safetensors.numpy import load_file, save_file
from tinygrad import Tensor, dtypes
from training_tools import quick

from gemma4_core import (
    Gemma4Error,
    GemmaTrainingBatch,
    build_optimizer,
    load_pretrained,
    save_training_checkpoint,
    train_step,
)
from gemma4_core.checkpoint import CheckpointFiles
from gemma4_core.weights import DenseMatrix, DenseStack
from gemma4_plugins.devices.cpu.kernels.structs import supported
from gemma4_plugins.formats.int8 import quantise_rows
from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

pytestmark = pytest.mark.usefixtures("plain_loops")

FAMILIES = ("e2b", "moe", "dense")
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("int8")
    for name in FAMILIES:
        model = load_pretrained(load(name).folder, device="cpu")
        save_training_checkpoint(model, root / name, quantize="int8")
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A fp32 folder that a test may damage; numpy reads every dtype of it."""
    save_training_checkpoint(load_pretrained(load("moe").folder, device="cpu", dtype="float32"), tmp_path / "f",
                             quantize="int8")
    return tmp_path / "f"


def test_rows_are_quantised_to_half_a_step() -> None:
    rows = RNG.standard_normal((50, 33)).astype(np.float32) * RNG.uniform(1e-6, 1e3, (50, 1)).astype(np.float32)
    rows[7] = 0
    rows[8] = 1e-44
    numbers, scale = quantise_rows(rows, "w")
    assert numbers.dtype == np.int8 and scale.dtype == np.float32 and (scale > 0).all()
    assert np.abs(numbers.astype(int)).max() == 127 and numbers.min() >= -127
    # scales are rounded to fp32, so half a step and a little
    assert (np.abs(numbers * scale[:, None] - rows) <= scale[:, None] * 0.5001 + 1e-37).all()
    with pytest.raises(Gemma4Error, match="lost"):
        quantise_rows(np.array([[1.0, np.nan]], np.float32), "lost")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_stored(folders: dict[str, Path], name: str) -> None:
    files, plain = (CheckpointFiles.open(f).infos for f in (folders[name], load(name).folder))
    config = json.loads((folders[name] / "config.json").read_text())
    quantised = {n for n, info in files.items() if info.dtype == "I8"}
    expected = {n for n, info in plain.items() if len(info.shape) >= 2 and "router" not in n}
    assert quantised == expected == set(config["gemma4_format"]["tensors"])
    assert config["dtype"] == "bfloat16" and set(files) == set(plain) | {n + "_scale" for n in expected}
    for key in expected:
        assert files[key].shape == plain[key].shape
        assert (files[key + "_scale"].dtype, files[key + "_scale"].shape) == ("F32", plain[key].shape[:-1])


@pytest.mark.parametrize("name", ["moe", pytest.param("dense", marks=pytest.mark.slow)])
def test_kernels_compute_int8_in_place_as_the_portable_form_does(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = load_pretrained(folders[name], device="cpu", dtype="float32")
    held = [place.matrix for place in model.places.values() if "router" not in place.name]
    assert model.format_name == "int8" and all(map(supported, held))
    assert all(isinstance(matrix, Int8Matrix | Int8Stack) for matrix in held)
    prompt, cache = [5, 6, 7, 8, 9], model.make_cache()
    assert model.engine.device_steps(cache.reserve(model, 1, 6)) == ("decode", "prefill")
    parts = [*model.stream_generate(prompt_tokens=prompt, max_new_tokens=8, stop_ids=())]
    answer = [(part.token, part.logprob) for part in parts if part.token is not None]
    ids = prompt + [token for token, _ in answer]
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    with quick():
        found = model.forward_ids(ids, cache=cache)[0].numpy()[0]
        expected = load_pretrained(folders[name], device="cpu", dtype="float32").forward_ids(ids)[0].numpy()[0]
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    chances = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    for row, (token, logprob) in zip(chances[4:], answer, strict=False):
        # a single position goes in as two int8 digits, exact to 2^-15 of its largest value
        assert row.argmax() == token and row[token] == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("name", ["e2b", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_saving_again_changes_no_byte(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    model = load_pretrained(folders[name], device="cpu")
    answer = list(model.generate([5, 6, 7], max_new_tokens=6, stop_ids=()))
    save_training_checkpoint(model, tmp_path / "again", quantize="int8")
    again = load_pretrained(tmp_path / "again", device="cpu")
    assert list(again.generate([5, 6, 7], max_new_tokens=6, stop_ids=())) == answer and len(answer) == 6
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folders[name] / file).read_bytes()


def test_towers_stay_as_they_are(tmp_path: Path) -> None:
    source = load_multimodal("e2b-mm").folder(tmp_path / "mm")
    save_training_checkpoint(load_pretrained(source, device="cpu"), tmp_path / "q", quantize="int8")
    files, plain = CheckpointFiles.open(tmp_path / "q"), CheckpointFiles.open(source)
    towers = [name for name in plain if "_tower" in name or "embed_vision" in name or "embed_audio" in name]
    assert towers and all(bytes(files.bytes(name)) == bytes(plain.bytes(name)) for name in towers)


def test_matrices_and_stacks_equal_their_dense_form(folders: dict[str, Path]) -> None:
    assert load_pretrained(folders["moe"], device="cpu").device == "CPU"
    q, s = (Tensor(RNG.integers(-127, 128, (3, 6, 8)).astype(np.int8)), Tensor(RNG.uniform(0.1, 1, (3, 6))).float())
    stack, plain = Int8Stack(q, s, dtypes.float32), DenseStack((q.float() * s.unsqueeze(-1)).contiguous().realize())
    x, chosen = Tensor(RNG.standard_normal((2, 1, 8))).float(), Tensor([[0, 2], [1, 1]], dtype=dtypes.int32)
    close = lambda a, b: np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)  # noqa: E731
    close(stack.selected(x, chosen), plain.selected(x, chosen))
    close(stack.every(x[:, 0]), plain.every(x[:, 0]))
    one, two = Int8Matrix(q[0], s[0], dtypes.float32), DenseMatrix(plain.tensor[0].contiguous())
    close(one.matmul(x), two.matmul(x))
    close(one.rows(chosen), two.rows(chosen))
    assert set(one.parts()) == set(stack.parts()) == {"", "_scale"}


def test_trained_matrices_become_ordinary_and_the_rest_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_pretrained(folders["dense"], device="cpu", dtype="float32")
    kept = {n: p.matrix for n, p in model.places.items() if ".layers.1.mlp.up" not in n}
    with quick():
        optimizer = build_optimizer(model, lr=0.05, trainable="*.layers.1.mlp.up*")
        losses = [train_step(model, optimizer, GemmaTrainingBatch([5, 6, 7, 8])).item() for _ in range(3)]
    assert losses[0] > losses[2]
    assert all(model.places[name].matrix is held for name, held in kept.items())
    (name,) = optimizer.named_params
    assert isinstance(model.places[name].matrix, DenseMatrix)
    save_training_checkpoint(model, tmp_path / "plain", optimizer)
    opened = load_pretrained(tmp_path / "plain", device="cpu")
    assert opened.format_name == "bf16" and "gemma4_format" not in opened.context.raw_config
    assert np.array_equal(opened.named_tensors()[name].numpy(), model.named_tensors()[name].numpy())


# ------------------------------------------------------------------------------------------------ damage

KEY = "model.language_model.layers.0.mlp.up_proj.weight"
Weights = dict[str, np.ndarray]


def scale_of(value: float) -> Callable[[Weights, dict], None]:
    def change(weights: Weights, config: dict) -> None:
        weights[KEY + "_scale"][3] = value

    return change


def drop_scale(weights: Weights, config: dict) -> None:
    del weights[KEY + "_scale"]


def drop_from_manifest(weights: Weights, config: dict) -> None:
    config["gemma4_format"]["tensors"].remove(KEY)


def add_to_manifest(weights: Weights, config: dict) -> None:
    config["gemma4_format"]["tensors"].append("model.language_model.norm.weight")


def other_version(weights: Weights, config: dict) -> None:
    config["gemma4_format"]["version"] = 7


def no_object(weights: Weights, config: dict) -> None:
    config["gemma4_format"] = ["int8"]


def short_scale(weights: Weights, config: dict) -> None:
    weights[KEY + "_scale"] = weights[KEY + "_scale"][:-1]


def wide_scale(weights: Weights, config: dict) -> None:
    weights[KEY + "_scale"] = weights[KEY + "_scale"].astype(np.float16)


def norm_as_int8(weights: Weights, config: dict) -> None:
    weights["model.language_model.norm.weight"] = weights["model.language_model.norm.weight"].astype(np.int8)
    config["gemma4_format"]["tensors"].append("model.language_model.norm.weight")


def floats_instead(weights: Weights, config: dict) -> None:
    weights[KEY] = weights[KEY].astype(np.float32)


def other_shape(weights: Weights, config: dict) -> None:
    weights[KEY], weights[KEY + "_scale"] = weights[KEY][:-1], weights[KEY + "_scale"][:-1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scale_of(np.nan), "is nan in row 3"),
        (scale_of(0.0), "is 0.0 in row 3"),
        (scale_of(-1.0), "is -1.0 in row 3"),
        (scale_of(np.inf), "is inf in row 3"),
        (drop_scale, f'{KEY}_scale" is missing'),
        (drop_from_manifest, "is stored as I8 and not named"),
        (add_to_manifest, "not stored as I8"),
        (other_version, "7"),
        (no_object, '["int8"]'),
        (short_scale, "_scale"),
        (wide_scale, "F16"),
        (norm_as_int8, "norm.weight"),
        (floats_instead, "not stored as I8"),
        (other_shape, KEY),
    ],
)
def test_folders_that_disagree(copied: Path, change: Callable[[Weights, dict], None], says: str) -> None:
    weights, config = load_file(copied / "model.safetensors"), json.loads((copied / "config.json").read_text())
    weights = {name: np.array(value) for name, value in weights.items()}
    change(weights, config)
    save_file(weights, copied / "model.safetensors")
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(Gemma4Error) as caught:
        load_pretrained(copied, device="cpu")
    assert says in str(caught.value) and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_without_a_manifest_the_headers_tell(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    del config["gemma4_format"]
    (copied / "config.json").write_text(json.dumps(config))
    assert load_pretrained(copied, device="cpu").format_name == "int8"
