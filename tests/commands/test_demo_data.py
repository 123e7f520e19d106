"""What the demo model learns from: nothing that is held out, the same for the same seed, in fixed shapes."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from demo_model.configs import demo_config, write_start
from demo_model.export import FILES, export
from demo_model.rows import FRAMES, IGNORED, MISREAD, Maker, Recipe
from demo_model.supply import GRID
from demo_model.texts import Said, random_sum
from demo_model.tokens import SIZE, open_tokenizer
from demo_model.training import Settings, fitting_steps

from gemma4_core.checkpoint.random_weights import all_tensors
from gemma4_core.config import parse_config
from gemma4_core.processing.processor import GemmaMultimodalProcessor
from gemma4_plugins.commands.demo.pictures import COLOURS, HELD_OUT, RELATIONS, SHAPES, SIZES, draw, random_scene
from gemma4_plugins.commands.demo.sounds import HIGH, KEYS, LOW, RATE, Manner, dial, random_manner, random_number
from gemma4_plugins.modalities.vision.config import vision_config

SMALL = Recipe(sentences=2, sums=3, pictures=2, sounds=2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start") / "demo", "demo", seed=0, easy=True)


@pytest.fixture(scope="module")
def maker(start: Path) -> Maker:
    return Maker(open_tokenizer(start), SMALL, GRID)


def test_pictures_leave_combinations_out_and_describe_what_is_there() -> None:
    rng = np.random.default_rng(0)
    assert len(COLOURS) >= 6 and len(SHAPES) >= 4 and len(SIZES) >= 2 and len(RELATIONS) >= 3
    scenes = [random_scene(rng) for _ in range(600)]
    shown = {(shape.size, shape.colour, shape.shape) for scene in scenes for shape in (scene.first, scene.second)}
    assert not shown & set(HELD_OUT) and len(shown) == len(SIZES) * len(COLOURS) * len(SHAPES) - len(HELD_OUT)
    assert all(random_scene(rng, held_out=True).held_out for _ in range(20))
    for scene in scenes[:30]:
        pixels = np.asarray(draw(scene, rng, 120, 100), np.float32)
        centres = []
        for shape in (scene.first, scene.second):
            near = np.abs(pixels - np.array(COLOURS[shape.colour])).max(-1) < 36
            assert near.sum() > 20, scene
            centres.append(np.argwhere(near).mean(0))
        (y1, x1), (y2, x2) = centres
        if scene.first.colour != scene.second.colour:
            ahead = {"left of": x2 - x1, "right of": x1 - x2, "above": y2 - y1, "below": y1 - y2}
            assert ahead[scene.relation] > 0, scene


def test_some_words_said_before_are_wrong_in_training_alone(maker: Maker) -> None:
    wrong = total = 0
    for scored in (False, True):
        for seed in range(20):
            rows = maker.make(np.random.default_rng(seed), scored)
            for row in (i for i, kind in enumerate(rows.kinds) if kind == "picture"):
                learnt = rows.labels[row] != IGNORED
                differ = rows.ids[row][learnt] != rows.labels[row][learnt]
                assert not (scored and differ.any())
                assert all(a in maker.alternatives[b] for a, b in
                           zip(rows.ids[row][learnt][differ], rows.labels[row][learnt][differ], strict=True))
                wrong, total = wrong + int(differ.sum()), total + (0 if scored else 6)
    # one in so many of the words drawn instead is the right one
    assert 0.5 * MISREAD < wrong / total < MISREAD


def test_sounds_hold_the_tones_of_their_keys() -> None:
    rng = np.random.default_rng(1)
    manner = Manner(tone=0.2, pause=0.1, lead=0.0, pitch=1.0, level=0.5, twist=0.5, noise=0.0)
    for key, low, high in (("1", LOW[0], HIGH[0]), ("0", LOW[3], HIGH[1]), ("#", LOW[3], HIGH[2])):
        sound = dial(key, manner, rng)[: round(0.18 * RATE)]
        spectrum = np.abs(np.fft.rfft(sound))
        peaks = sorted(np.argsort(spectrum)[-2:] * RATE / len(sound))
        np.testing.assert_allclose(peaks, [low, high], atol=8)
    for _ in range(200):
        number = random_number(rng)
        sound = dial(number, random_manner(rng, len(number)), rng)
        assert 8 <= len(number) <= 12 and set(number) <= set(KEYS) and np.abs(sound).max() <= 1
        assert len(sound) <= FRAMES * RATE // 100 - 160


def test_sums_that_are_scored_are_not_trained() -> None:
    rng = np.random.default_rng(2)
    trained = [random_sum(rng) for _ in range(3000)]
    scored = [random_sum(rng, held_out=True) for _ in range(100)]
    assert not {str(item) for item in trained} & {str(item) for item in scored}
    assert {item.operator for item in trained} == {"+", "-"} and max(item.first for item in trained) > 900
    results = [item.result for item in trained]
    assert min(results) < -500 and max(results) > 1500
    assert all(0 <= n < 1000 for item in trained for n in (item.first, item.second))


def test_batches(maker: Maker) -> None:
    rows, again = (maker.make(np.random.default_rng([5, 7])) for _ in range(2))
    assert np.array_equal(rows.ids, again.ids) and all(map(np.array_equal, rows.pixels, again.pixels))
    batch = rows.batch(GRID)
    assert rows.kinds == ["sentence"] * 2 + ["sum"] * 3 + ["picture"] * 2 + ["sound"] * 2
    assert batch.input_ids.shape == (9, 96) and batch.pixel_values.shape == (2, 280, 192)
    assert batch.input_features.shape == (2, FRAMES, 128)
    learnt = rows.labels != IGNORED
    said = learnt & np.array([kind != "picture" for kind in rows.kinds])[:, None]
    assert np.array_equal(rows.labels[said], rows.ids[said]) and learnt.any(1).all()
    assert rows.segments.max() > 1 and ((rows.segments < 0) == (rows.ids == 0)).all()
    scored = maker.make(np.random.default_rng(0), scored=True, new=True)
    assert scored.segments.max() == 0


def test_rows_are_what_the_processor_makes(start: Path, maker: Maker) -> None:
    """Picture and sound go in as ``generate`` will put them in."""
    processor = GemmaMultimodalProcessor.from_pretrained(start)
    rng = np.random.default_rng(3)
    image = draw(random_scene(rng), rng, 200, 160)
    sound = dial("1234567890", random_manner(rng, 10), rng)
    messages = [{"role": "user", "content": "Describe <|image|>. <|audio|>"}]
    found = processor.prepare_inputs(messages, images=[image], audio=[sound])
    only = Maker(open_tokenizer(start), replace(SMALL, sentences=0, sums=0), GRID)
    rows = only.make(np.random.default_rng(4))
    batch = rows.batch(GRID)
    assert found.pixel_values is not None and found.input_features is not None
    assert batch.pixel_values.shape[1:] == found.pixel_values.shape[1:]
    assert batch.input_features.shape[2] == found.input_features.shape[2]
    tokenizer = open_tokenizer(start)
    text = tokenizer.decode(found.input_ids, skip_special_tokens=False)
    frame = tokenizer.decode(only.turn(Said("X", "Y"))[0], skip_special_tokens=False)
    before, after = frame.split("Y")[0].split("X")
    assert text.startswith(before) and text.endswith(after)


def test_the_tokenizer_knows_words_and_keeps_everything(start: Path) -> None:
    tokenizer = open_tokenizer(start)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    assert tokenizer.get_vocab_size() == SIZE < 1000
    assert encode("a large red circle left of a small blue square").tokens[1:4] == ["▁large", "▁red", "▁circle"]
    assert encode("47+1394").tokens == list("47+1394")
    for text in ("Zürich is not in the corpus.", "<|turn>user\nHi<turn|>\n", "日本"):
        assert tokenizer.decode(encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("variant", ["demo", "experts"])
def test_models_are_small_and_have_every_mechanism(variant: str) -> None:
    config = parse_config(demo_config(variant))
    text, vision = config.text_config, vision_config(config)
    assert vision is not None
    count = sum(math.prod(shape) for shape in all_tensors(config, False).values())
    assert count <= 4_000_000 and {layer.is_full for layer in text.layers} == {True, False}
    assert text.head_dim != text.global_head_dim
    if variant == "demo":
        assert text.hidden_size_per_layer_input and text.num_kv_shared_layers and text.use_double_wide_mlp
        assert vision.use_clipped_linears and "audio_config" in config.media
    else:
        assert text.enable_moe_block and text.attention_k_eq_v and config.vision_bidirectional
        assert vision.standardize and "audio_config" not in config.media


def test_export_takes_the_model_alone(start: Path, tmp_path: Path) -> None:
    target = export(start, tmp_path / "demo")
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


def test_steps_fit_into_the_time() -> None:
    settings = Settings(minutes=9.0, total_minutes=27.0, warmup=300)
    steps = fitting_steps(rate=10.0, ready=60.0, settings=settings)
    assert 10 * 3 * (9 * 60 - 60) * 0.9 < steps < 10 * 27 * 60


def test_a_run_keeps_what_it_was_begun_with(tmp_path: Path, start: Path) -> None:
    import train_demo_model as script

    (tmp_path / "step-20").mkdir()
    args = Namespace(run=tmp_path, **dict.fromkeys(script.KEPT, "given"), minutes=3.0)
    assert set(script.remembered(args).values()) == {"given"}  # nothing was begun yet
    (tmp_path / "step-20" / "training_state.json").write_text("{}")
    (tmp_path / "settings.json").write_text(json.dumps({"variant": "experts", "seed": 7, "minutes": 9.0}))
    kept = script.remembered(args)
    assert (kept["variant"], kept["seed"], kept["lr"], args.minutes) == ("experts", 7, "given", 3.0)
