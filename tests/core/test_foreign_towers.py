"""Checkpoints whose towers are not in the files, or have no plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from foreign_folders import DATA, Tensors, changed, read

from gemma4_core import CheckpointError, InputError, PluginError, load_pretrained, registry, save_training_checkpoint
from gemma4_core.errors import Gemma4Warning
from gemma4_core.quantize import quantize

pytestmark = pytest.mark.usefixtures("plain_loops")

MEDIA = DATA / "multimodal" / "e2b-mm"
PROMPT, ANSWER = [2, 5, 9, 3, 7, 11], [41, 101, 110, 83]
IMAGE = 297


def without(*words: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {name: stored for name, stored in t.items() if not any(word in name for word in words)}


def answer(folder: Path, **options: object) -> list[int]:
    model = load_pretrained(folder, device="cpu", **options)  # type: ignore[arg-type]
    return list(model.generate(PROMPT, max_new_tokens=4, temperature=0.0))


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Blocks plugins by entry-point name for one test."""

    def block(names: str) -> None:
        monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", names)
        registry.reload()

    yield block
    monkeypatch.undo()
    registry.reload()


@pytest.mark.parametrize(
    ("words", "missing", "left"),
    [(("vision", "audio"), 217, ("text",)), (("audio",), 132, ("text", "vision")), (("vision",), 85, ("text", "audio")),
     (("layers.0.feed_forward1.ffw_layer_1.input_max",), 1, ("text", "vision"))],
)  # fmt: skip
def test_absent_towers_name_the_option_that_opens_the_rest(
    words: tuple[str, ...], missing: int, left: tuple[str, ...], tmp_path: Path
) -> None:
    folder = changed(MEDIA, tmp_path / "some", without(*words))
    with pytest.raises(CheckpointError, match=rf"{missing} missing\).*--modality text\S* opens it without") as caught:
        load_pretrained(folder, device="cpu")
    assert len(str(caught.value)) < 500
    said = str(caught.value).partition("--modality ")[2].partition(" opens it")[0].split(",")
    assert set(left) <= set(said) and not set(said) & ({"vision", "audio"} - set(left))
    assert answer(folder, modalities=said) == ANSWER


def test_absent_tensors_of_the_text_model_name_no_option(tmp_path: Path) -> None:
    folder = changed(MEDIA, tmp_path / "some", without("audio", "layers.0.mlp.up_proj"))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder, device="cpu")
    assert "--modality" not in str(caught.value)


def test_absent_towers_are_absent_from_what_is_quantized(tmp_path: Path) -> None:
    folder = changed(MEDIA, tmp_path / "some", without("audio"))
    quantize(folder, tmp_path / "int8")
    assert not any("audio" in name for name in read(tmp_path / "int8"))
    assert load_pretrained(tmp_path / "int8", device="cpu", modalities=("text", "vision")).towers.keys() == {"vision"}


@pytest.mark.parametrize("plugin", ["vision", "audio", "vision,audio"])
def test_blocked_tower_opens_for_text(plugin: str, blocked: Callable[[str], None]) -> None:
    blocked(plugin)
    names = plugin.split(",")
    with pytest.warns(Gemma4Warning, match="left out") as caught:
        assert answer(MEDIA) == ANSWER
    assert len(caught) == 1
    assert all(f"plugin {name} is blocked by GEMMA4_DISABLE_PLUGINS" in str(caught[0].message) for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(MEDIA, modalities=("text",)) == ANSWER


def test_blocked_tower_refuses_media(blocked: Callable[[str], None]) -> None:
    blocked("vision")
    with pytest.warns(Gemma4Warning):
        model = load_pretrained(MEDIA, device="cpu")
    with pytest.raises(InputError, match=f"image tokens .{IMAGE}., and no plugin for them is loaded"):
        model.forward_ids([2, IMAGE, 5])
    with pytest.raises(InputError, match="pixel_values: no loaded modality takes it"):
        model.forward_ids([2, IMAGE, 5], pixel_values=np.zeros((1, 9, 768), np.float32))
    with pytest.raises(PluginError, match=r"vision.*blocked by GEMMA4_DISABLE_PLUGINS"):
        load_pretrained(MEDIA, device="cpu", modalities=("text", "vision"))


def test_blocked_tower_is_kept_when_saved(blocked: Callable[[str], None], tmp_path: Path) -> None:
    blocked("vision")
    with pytest.warns(Gemma4Warning):
        save_training_checkpoint(load_pretrained(MEDIA, device="cpu"), tmp_path / "saved")
    with pytest.warns(Gemma4Warning) as caught:
        load_pretrained(tmp_path / "saved", device="cpu")
    assert "85 tensors" in str(caught[0].message)
    assert read(tmp_path / "saved").keys() == read(MEDIA).keys()


def test_blocked_tower_with_tensors_of_its_own_naming(blocked: Callable[[str], None], tmp_path: Path) -> None:
    """What a blocked plugin calls its tensors cannot be known; nothing of the text model may be among them."""
    name = "model.dots.direction"
    folder = changed(MEDIA, tmp_path / "dots", lambda t: {**t, name: t["model.language_model.norm.weight"]})
    with pytest.raises(CheckpointError, match=r'1 unexpected.*"model.dots.direction" is unexpected'):
        load_pretrained(folder, device="cpu")
    assert answer(folder, modalities=("text",)) == ANSWER
    blocked("lamb")
    with pytest.warns(Gemma4Warning, match=r"1 tensors of dots.*plugin lamb is blocked"):
        assert answer(folder) == ANSWER
    odd = changed(MEDIA, tmp_path / "odd", lambda t: {**t, "lm_head.bias": t["model.language_model.norm.weight"]})
    with pytest.raises(CheckpointError, match=r'"lm_head.bias" is unexpected'):
        load_pretrained(odd, device="cpu", modalities=("text",))


def test_blocked_tower_is_named_in_one_line_by_the_command() -> None:
    command = [sys.executable, "-m", "gemma4_core", "generate", "-m", str(MEDIA), "-n", "4", "--prompt-tokens"]
    command += ["2,5,9,3,7,11"]
    environment = os.environ | {"GEMMA4_DISABLE_PLUGINS": "vision"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "41,101,110,83\n")
    told = [line for line in done.stderr.splitlines() if "vision" in line]
    assert len(told) == 1 and "blocked by GEMMA4_DISABLE_PLUGINS" in told[0]
    image = subprocess.run([*command, "--image", "x.png"], env=environment, capture_output=True, text=True, timeout=240)
    assert image.returncode == 1 and image.stderr.startswith("Error: --image x.png: no plugin for images is loaded")
