"""``gemma4 models``: what is listed, shown and removed, and that nothing outside the Hugging Face cache is touched."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from cli_tools import failure, gemma4
from reference_data import DATA

HUB_NAME = "google/gemma-4-E2B-it"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with two Gemma 4 models and one of another family."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    for module in ("hub_cache", "hub"):
        monkeypatch.setattr(f"gemma4_core.checkpoint.{module}.cached_snapshot", partial(snapshot, root))
    add(root, HUB_NAME, DATA / "text" / "e2b")
    add(root, "somebody/tiny-dense", DATA / "text" / "dense")
    other = add(root, "meta/llama", DATA / "text" / "e2b")
    (other / "config.json").write_text('{"model_type": "llama"}')
    return root


def snapshot(root: Path, name: str, file: str = "config.json") -> Path | None:
    folder = root / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    return folder if (folder / file).exists() else None


def add(root: Path, name: str, source: Path) -> Path:
    """A snapshot of links to blobs, as huggingface_hub makes it."""
    repository = root / f"models--{name.replace('/', '--')}"
    folder, blobs = repository / "snapshots" / "abc", repository / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.glob("*.*"))):
        if path.name == "config.json" and name == "meta/llama":
            continue
        shutil.copyfile(path, blobs / str(number))
        (folder / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    return folder


def test_a_config_that_is_a_pipe_is_left_out(cache: Path) -> None:
    config = add(cache, "somebody/pipe", DATA / "text" / "dense") / "config.json"
    config.unlink()
    os.mkfifo(config)
    assert "somebody/pipe" not in gemma4("models").out


def test_models_lists_the_cache_and_the_demo(cache: Path) -> None:
    for args in (["models", "--json"], ["models", "list", "--json"]):
        found = {row["name"]: row for row in json.loads(gemma4(*args).out)}
        assert list(found) == ["demo", "e2b-it", "somebody/tiny-dense"]
        row = found["e2b-it"]
        assert (row["hub_name"], row["format"], row["problem"]) == (HUB_NAME, "bf16", None)
        assert row["bytes"] == sum(p.stat().st_size for p in (DATA / "text" / "e2b").glob("*.*"))
    lines = gemma4("models").out.splitlines()
    assert lines[0].split() == ["NAME", "SHAPE", "FORMAT", "SIZE", "FOLDER"] and len(lines) == 4


def test_show_tells_what_a_model_is(cache: Path) -> None:
    assert gemma4("models", "show", "e2b-it").out.startswith(f"{HUB_NAME}: gemma4")
    about = json.loads(gemma4("models", "show", "demo", "--json").out)
    assert about["format"] == "bf16" and about["text"]["layers"] == 8
    assert gemma4("models", "show", "demo").out.startswith("demo: gemma4")


def test_rm_asks_first_and_removes_one_model(cache: Path) -> None:
    repository = cache / "models--google--gemma-4-E2B-it"
    (cache / ".locks" / repository.name).mkdir(parents=True)
    line = failure("models", "rm", "e2b-it", stdin="y\n")
    assert "add --yes" in line and repository.exists()
    ran = gemma4("models", "rm", "e2b-it", "--yes")
    assert (ran.code, ran.out) == (0, "") and not repository.exists()
    assert not (cache / ".locks" / repository.name).exists()
    assert (cache / "models--somebody--tiny-dense").exists()


def test_rm_follows_no_link(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(cache / "models--somebody--tiny-dense", outside, symlinks=True)
    (cache / "models--some--link").symlink_to(outside)
    assert "is a link" in failure("models", "rm", "some/link", "--yes")
    assert (outside / "snapshots").exists()
    inside = cache / "models--google--gemma-4-E2B-it" / "snapshots" / "abc" / "notes"
    inside.symlink_to(outside)
    assert gemma4("models", "rm", HUB_NAME, "--yes").code == 0
    assert (outside / "snapshots" / "abc" / "config.json").exists()


@pytest.mark.parametrize(("name", "words"), [
    ("demo", "part of this package"), ("e2b-ti", "did you mean 'e2b-it'?"),
    ("no/such", "not in the Hugging Face cache"),
    ("../x", "not in the Hugging Face cache"), ("meta/llama", "not in the Hugging Face cache"),
])
def test_rm_refuses_what_is_not_in_the_cache(cache: Path, name: str, words: str) -> None:
    assert words in failure("models", "rm", name, "--yes")


def test_rm_refuses_a_folder_of_the_users(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(DATA / "text" / "e2b", folder)
    assert "a folder of yours" in failure("models", "rm", folder, "--yes") and folder.exists()


@pytest.mark.parametrize(("typed", "meant"), [
    ("dmeo", "demo"), ("Demoo", "demo"), ("e2bit", "e2b-it"), ("31-b", "31b"),
    ("google/gemma-4-E4B-ti", "google/gemma-4-E4B-it"),
])
def test_a_mistyped_model_offers_the_nearest(cache: Path, typed: str, meant: str) -> None:
    assert f"did you mean '{meant}'?" in failure("generate", "-m", typed, "Hi")


def test_a_model_that_cannot_be_opened_is_listed_with_its_reason(cache: Path) -> None:
    config = cache / "models--somebody--tiny-dense" / "snapshots" / "abc" / "config.json"
    data = json.loads(config.read_text()) | {"tie_word_embeddings": False}
    config.unlink()
    config.write_text(json.dumps(data))
    row = json.loads(gemma4("models", "--json").out)[2]
    assert "tie_word_embeddings" in row["problem"] and row["format"] is None
