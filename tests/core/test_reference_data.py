"""The reference files hang together, and the drawn weights are the committed ones on this machine too."""

from __future__ import annotations

from pathlib import Path

import media
import numpy as np
import pytest
import reference_data as rd
from safetensors import safe_open


def stored(folder: Path) -> dict[str, np.ndarray]:
    """All bf16 tensors of a folder as float32."""
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw, start = file.read_bytes(), 8 + int.from_bytes(file.read_bytes()[:8], "little")
        for name, entry in rd.read_header(file).items():
            begin, end = (start + at for at in entry["data_offsets"])
            words = np.frombuffer(raw[begin:end], "<u2").astype(np.uint32) << 16
            out[name] = words.view(np.float32).reshape(entry["shape"])
    return out


@pytest.mark.parametrize("folder", sorted(rd.DATA.glob("*/*/config.json")), ids=lambda path: path.parent.name)
def test_committed_weights_are_the_drawn_ones(folder: Path) -> None:
    for name, value in stored(folder.parent).items():
        assert np.array_equal(value, rd.draw(name, value.shape, 0)), name


def test_written_seed_opens_and_differs(tmp_path: Path) -> None:
    folder = rd.write_seed(rd.load("e4b").folder, 1, tmp_path / "seed")
    with safe_open(folder / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(rd.tensor_shapes(rd.load("e4b").folder))
    name = "model.language_model.norm.weight"
    assert np.array_equal(stored(folder)[name], rd.draw(name, (48,), 1))
    assert not np.array_equal(rd.draw(name, (48,), 0), rd.draw(name, (48,), 1))


@pytest.mark.parametrize("name", rd.TEXT_FAMILIES)
def test_embeddings_of_the_bf16_run_use_the_rounded_scale(name: str) -> None:
    reference = rd.load(name)
    vocab, hidden = reference.logits.shape[-1], reference.hidden.shape[-1]
    table = rd.draw("embed_tokens.weight", (vocab, hidden), 0)
    scale = rd.round_bf16(np.float32(hidden) ** np.float32(0.5))
    assert np.array_equal(rd.round_bf16(table[reference.kl_ids[0, 0]] * scale), reference.embeds_bf16)


@pytest.mark.parametrize("name", rd.TRAINING)
def test_first_loss_follows_from_the_reference_logits(name: str) -> None:
    training, case = rd.load_training(name), rd.TRAINING[name]
    reference = rd.load(name) if case is None else rd.load_multimodal(name).cases[case]
    logits = reference.logits[:, :-1].astype(np.float64)
    targets = training.labels[:, 1:]
    kept = targets >= 0
    picked = np.take_along_axis(logits, np.where(kept, targets, 0)[..., None], -1)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - picked)[kept].mean()
    assert training.losses["sgd"][0] == training.losses["adamw"][0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", rd.TRAINING)
def test_steps_follow_from_the_gradients(name: str) -> None:
    for key, p in rd.load_training(name).parameters.items():
        assert np.abs(p.gradient).max() > 0, key
        # p - lr g = sgd, so sgd + lr g is the committed value, exact in bf16.
        start = p.sgd.astype(np.float64) + 1e-3 * p.gradient
        assert np.abs(rd.round_bf16(start.astype(np.float32)) - start).max() <= 1e-6 * (1 + np.abs(start).max()), key
        assert np.abs(p.adamw - start).max() < 1.2e-3 + 1e-5 * np.abs(start).max(), key


def test_multimodal_cases_are_whole(tmp_path: Path) -> None:
    for name in rd.MULTIMODAL:
        reference = rd.load_multimodal(name)
        assert (reference.folder(tmp_path / name) / "model.safetensors").is_file()
        for case in reference.cases.values():
            placeholders = np.isin(case.ids, [reference.config["image_token_id"], reference.config["video_token_id"]])
            assert placeholders.sum() == (0 if case.vision_soft is None else len(case.vision_soft))
            audio = (case.ids == reference.config["audio_token_id"]).sum()
            assert audio == (0 if case.audio_soft is None else len(case.audio_soft))


def test_drawings_and_samples_are_stable() -> None:
    # A Pillow image that needs no resize shows its own pixels in the reference's samples.
    reference = rd.load_images()["exact/pil"]
    pixels = np.asarray(media.draw_image("exact"))
    patches = pixels.reshape(48, 16, 48, 16, 3).transpose(0, 2, 1, 3, 4).reshape(-1)
    expected = (patches[rd.sample_indices(patches.size)].astype(np.float64) * (1 / 255)).astype(np.float32)
    assert np.array_equal(reference.samples, expected)
    features = rd.load_features()
    assert features["silence", 16000].frames == pytest.approx(np.log(1e-3), abs=1e-6)
    assert features["tone", 16000].frames.shape == (6, 128)
