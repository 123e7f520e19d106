"""What the trained models know, asked through the command line from real PNG and WAV files. None of it was trained on.

The packaged model, and its variant of the large family: experts, K=V layers, and pictures whose tokens see each other.
``data/experts`` holds the variant as int8, which is the smaller file; its ordinary weights are made from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_tools import gemma4

from gemma4_core import load_pretrained
from gemma4_plugins.commands.demo import packaged_demo
from gemma4_plugins.commands.demo.pictures import draw, random_scene
from gemma4_plugins.commands.demo.sounds import dial, random_manner, random_number, wav_bytes

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
EXPERTS = Path(__file__).parents[1] / "data" / "experts"
SAMPLES = 40
SEED = 20_260_101
"""Of no training run."""
Question = tuple[list[str], str]
"""Lines for ``gemma4 chat``, and the right answer."""


def sums(folder: Path, rng: np.random.Generator) -> Question:
    from demo_model.texts import random_sum

    item = random_sum(rng, held_out=True)
    return [f"What is {item}?"], str(item.result)


def pictures(folder: Path, rng: np.random.Generator, new: bool = False) -> Question:
    scene, path = random_scene(rng, new), folder / f"{rng.integers(1 << 60)}.png"
    draw(scene, rng, 320, 320).save(path)
    return [f"/image {path}", "Describe the picture."], str(scene)


def new_pictures(folder: Path, rng: np.random.Generator) -> Question:
    return pictures(folder, rng, new=True)


def sounds(folder: Path, rng: np.random.Generator) -> Question:
    number, path = random_number(rng), folder / f"{rng.integers(1 << 60)}.wav"
    path.write_bytes(wav_bytes(dial(number, random_manner(rng, len(number)), rng)))
    return [f"/audio {path}", "Transcribe the sound."], number


def share_right(make: Callable[[Path, np.random.Generator], Question], folder: Path, model: Path | None) -> float:
    """Exact answers of a session that forgets after each question."""
    rng = np.random.default_rng(SEED)
    asked = [make(folder, rng) for _ in range(SAMPLES)]
    lines = [line for questions, _ in asked for line in (*questions, "/clear")]
    ran = gemma4("chat", "-m", model, "--temperature", 0, stdin="\n".join(lines) + "\n")
    assert ran.code == 0, ran.err
    answers = [line for line in ran.out.splitlines() if line.strip()]
    assert len(answers) == SAMPLES
    return sum(found == truth for found, (_, truth) in zip(answers, asked, strict=True)) / SAMPLES


@pytest.mark.parametrize(("make", "least"), [(sums, 0.99), (pictures, 0.95), (new_pictures, 0.9), (sounds, 0.95)])
def test_held_out_samples(
    make: Callable[[Path, np.random.Generator], Question], least: float, tmp_path: Path
) -> None:
    # of 40 samples one more may be wrong than the share allows
    assert share_right(make, tmp_path, packaged_demo()) >= least - 1 / SAMPLES


@pytest.fixture(scope="module")
def ordinary_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The variant of the large family with bf16 weights."""
    folder = tmp_path_factory.mktemp("bf16")
    load_pretrained(EXPERTS, device="cpu").save_pretrained(folder, format="bf16")
    return folder


@pytest.mark.parametrize("make", [sums, pictures, new_pictures])
def test_held_out_samples_of_the_large_family(
    make: Callable[[Path, np.random.Generator], Question], ordinary_experts: Path, tmp_path: Path
) -> None:
    assert share_right(make, tmp_path, ordinary_experts) >= 0.95 - 1 / SAMPLES


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both models with int8 matrices."""
    folder = tmp_path_factory.mktemp("int8") / "demo"
    ran = gemma4("quantize", "-m", packaged_demo(), "--out", folder, "--format", "int8")
    assert ran.code == 0, ran.err
    return {"demo": folder, "experts": EXPERTS}


@pytest.mark.parametrize(("name", "make"), [("demo", sums), ("demo", sounds), ("experts", sums), ("experts", pictures)])
def test_int8_answers_as_well(
    name: str, make: Callable[[Path, np.random.Generator], Question], quantised: dict[str, Path], tmp_path: Path
) -> None:
    assert share_right(make, tmp_path, quantised[name]) >= 0.95 - 1 / SAMPLES


def test_one_command_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED + 1)
    cases = (("--image", "Describe <|image|>.", pictures), ("--audio", "Transcribe <|audio|>.", sounds))
    for option, prompt, make in cases:
        (attach, _), truth = make(tmp_path, rng)
        ran = gemma4("generate", "-m", "demo", "--prompt", prompt, option, attach.split(" ", 1)[1])
        assert (ran.code, ran.out) == (0, truth + "\n")


def test_it_fits_into_the_package() -> None:
    folder = packaged_demo()
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
