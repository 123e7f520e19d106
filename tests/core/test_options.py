"""Options given in Python or to an optimizer: unknown names are refused with the nearest one, values by their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_tools import failure, gemma4
from train_tools import Place

from gemma4_core import GemmaMultimodalProcessor, Option, build_optimizer, load_pretrained, registry
from gemma4_core.errors import InputError
from gemma4_core.model import GemmaModel
from gemma4_core.plugins.options import check_options


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def model(place: Place) -> GemmaModel:
    return load_pretrained(place.model, device="cpu")


@pytest.mark.parametrize(("options", "says"), [
    ({"image_token": 70}, "unknown option 'image_token', did you mean 'image_tokens'?"),
    ({"zzz": None}, "unknown option 'zzz' (known: "),
    ({3: 1}, "unknown option '3'"),
    ({"image_tokens": "many"}, "image_tokens 'many': must be a whole number"),
    ({"image_tokens": True}, "image_tokens True: must be a whole number"),
    ({"image_tokens": 71}, "image_tokens 71: choose one of 70"),
    ({"audio_truncate": 1}, "audio_truncate 1: must be True or False"),
    (["image_tokens"], "give a mapping"),
])
def test_options_of_load_pretrained(
    place: Place, options: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma4_core.loading.read_text", lambda *a, **k: pytest.fail("weights were read"))
    with pytest.raises(InputError) as caught:
        load_pretrained(place.model, device="cpu", options=options)
    assert says in str(caught.value) and len(str(caught.value)) < 500


def test_types_of_options() -> None:
    declared = [Option("--rank", "", type=int), Option("--scale", "", type=float),
                Option("--folder", "", multiple=True), Option("--mode", "", choices=("beside", "merged"))]
    for good in ({"rank": 3}, {"scale": 2}, {"folder": "a"}, {"folder": ["a", Path("b")]}, {"mode": "MERGED"},
                 {"rank": None}, {"allow_urls": True}, {}):
        check_options(good, declared)
    for bad in ({"rank": 1.5}, {"scale": float("nan")}, {"scale": "1"}, {"folder": [1]}, {"folder": 3},
                {"mode": "besid"}, {"rank": [1]}, {"mode": ["merged"]}):
        with pytest.raises(InputError, match=f"^{next(iter(bad))} "):
            check_options(bad, declared)


def test_options_of_a_processor(place: Place) -> None:
    with pytest.raises(InputError, match="unknown option 'image_tokns', did you mean 'image_tokens'"):
        GemmaMultimodalProcessor.from_pretrained(place.model, image_tokns=70)
    processor = GemmaMultimodalProcessor.from_pretrained(place.model)
    with pytest.raises(InputError, match=r"imags.*did you mean 'images'"):
        processor.prepare_inputs("a", imags=["x.png"])


def test_options_of_generate(model: GemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="option of generate 'temperatur', did you mean 'temperature'"):
        model.generate([2, 5], 2, temperatur=1.0)
    with pytest.raises(InputError, match="option of stream_generate 'max_token'"):
        model.stream_generate("a", 2, max_token=None)
    monkeypatch.setattr(model, "tower_specs", list(registry.modalities.values()))
    with pytest.raises(InputError, match="did you mean 'pixel_values'"):
        model.forward_ids([2, 5], pixel_value=[1])


@pytest.mark.parametrize(("option", "says"), [
    ("beta=3", "optimizer adamw: unknown option beta, did you mean 'betas'?"),
    ("betas=3", "betas 3 are not two numbers"),
    ("betas=[0.9, 2]", "betas [0.9, 2] are not two numbers"),
    ("eps=small", "eps 'small' is not a number"),
    ("eps=NaN", "eps nan is not a number"),
    ("compact=1", "compact 1 is neither true nor false"),
    ("lr=1", "--lr"),
    ("weight_decay=1", "--weight-decay"),
    ("momentum=" + "[" * 100000, "unknown option momentum"),
])
def test_optimizer_options_are_refused_in_a_dry_run(place: Place, tmp_path: Path, option: str, says: str) -> None:
    message = failure(*place.args(tmp_path / "run", "--dry-run", "--optimizer-option", option))
    assert says in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("counts_alone")
def test_optimizer_options_that_fit(place: Place, tmp_path: Path, model: GemmaModel) -> None:
    asked = ["--dry-run", "--optimizer", "muon"]
    asked += ["--optimizer-option", "momentum=0.5", "--optimizer-option", "ns_steps=2"]
    assert gemma4(*place.args(tmp_path / "run", *asked)).code == 0
    twice = gemma4(*place.args(tmp_path / "run", *asked, "--optimizer-option", "momentum=0.7"))
    assert twice.code == 2 and "'momentum' is given twice" in twice.err
    with pytest.raises(InputError, match="unknown option momentun, did you mean 'momentum'"):
        build_optimizer(model, "sgd", momentun=1)
