"""``gemma4 demo`` with a model in the place of the packaged one: an untrained one of its shape, whose answers are
wrong, and shown to be."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_tools import failure, gemma4
from PIL import Image

import gemma4_core.checkpoint.hub as hub
import gemma4_plugins.commands.demo as demo
from gemma4_core.checkpoint.hub import resolve_folder

pytestmark = pytest.mark.usefixtures("plain_loops")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(EXAMPLES))
    from demo_model.configs import write_start

    return write_start(tmp_path_factory.mktemp("packaged") / "demo", "demo", seed=0, easy=True)


@pytest.fixture
def packaged(standin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for module in (hub, demo):
        monkeypatch.setattr(module, "packaged_demo", lambda: standin)
    yield standin


@pytest.mark.slow
def test_the_trained_model_is_shown(packaged: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ran = gemma4("demo", "--seed", 3, "--max-new-tokens", 5, "--keep", kept)
    assert (ran.code, ran.err) == (0, ""), ran
    lines = ran.out.splitlines()
    assert "that this project trained" in lines[0]
    for words in ("text      The hungry cat", f"picture   {kept / 'picture.png'}", f"sound     {kept / 'sound.wav'}",
                  "speed     5 tokens at", f"gemma4 chat -m {kept}", "What to try next", "gemma4 doctor",
                  "gemma4 serve -m demo", "pip install -e plugins/gemma4-serve"):
        assert words in ran.out
    # what it does not know is called wrong, and the truth is told
    sum_, picture, sound = re.findall(r"\(wrong: it is (.+)\)", ran.out)
    first, second = map(int, re.findall(r"sum +What is (\d+) \+ (\d+)\?", ran.out)[0])
    assert sum_ == str(first + second)
    assert re.fullmatch(r"a (small|large) \w+ \w+ (left of|right of|above|below) a (small|large) \w+ \w+", picture)
    assert re.fullmatch(r"[0-9*#]{8,12}", sound)
    with Image.open(kept / "picture.png") as image:
        assert image.size == (448, 448)
    assert (kept / "sound.wav").read_bytes()[:4] == b"RIFF"
    for path in packaged.iterdir():
        assert (kept / path.name).read_bytes() == path.read_bytes()


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    made = [(demo.draw_picture(tmp_path / f"{n}.png", np.random.default_rng(n // 2)),
             demo.record_sound(tmp_path / f"{n}.wav", np.random.default_rng(n // 2))) for n in range(3)]
    assert [x[1] for x in made[0]] == [x[1] for x in made[1]] != [x[1] for x in made[2]]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert (tmp_path / "0.wav").read_bytes() == (tmp_path / "1.wav").read_bytes()


def test_it_has_a_name(packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_folder("demo") == resolve_folder("Demo") == packaged
    ran = gemma4("info", "-m", "demo")
    assert ran.code == 0 and "E2B" not in ran.out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert resolve_folder("demo") == Path("demo")  # a folder of the user's comes first


def test_what_it_refuses(packaged: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert str(tmp_path) in failure("demo", "--keep", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
