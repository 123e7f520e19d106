"""What writers of checkpoints replace, copy and leave alone: only what belongs to a model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_tools import failure, gemma4
from reference_data import load
from tiny_model import write_tiny_checkpoint

from gemma4_core import load_pretrained, save_training_checkpoint
from gemma4_core.checkpoint import atomic, atomic_folder, write_random_checkpoint
from gemma4_core.checkpoint.contents import foreign_files
from gemma4_core.checkpoint.folder import copy_others
from gemma4_core.contracts import Context
from gemma4_core.errors import CheckpointError
from gemma4_core.quantize import quantize
from gemma4_core.training.run_folder import RunFolder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "source", towers=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A checkpoint with a file of the user's beside it."""
    folder = write_tiny_checkpoint(tmp_path / "mine", seed=1, towers=False)
    (folder / "thesis.txt").write_text("years of work")
    return folder


def test_foreign_files_are_never_replaced(tmp_path: Path, source: Path, mine: Path) -> None:
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    model = load_pretrained(source, device="cpu")
    for more in ([], ["--overwrite"]):
        for command in (["quantize", "-m", source, "--out", mine], ["demo", "--keep", mine]):
            assert '"thesis.txt"' in failure(*command, *more)
    for write in (
        lambda: quantize(source, mine),
        lambda: save_training_checkpoint(model, mine),
        lambda: write_random_checkpoint(mine, "tiny-e2b"),
    ):
        with pytest.raises(CheckpointError, match=r"neither empty nor a checkpoint without other files .*thesis\.txt"):
            write()
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert names(tmp_path) == {"source", "mine"}


@pytest.mark.parametrize("entry", ["notes/", ".git/", "weights.bin", "my_lora.safetensors", ".env", "link", ".cache/x"])
def test_foreign_files_of_any_kind(tmp_path: Path, source: Path, entry: str) -> None:
    if entry == "link":
        (source / entry).symlink_to(tmp_path)
    else:
        path = source / entry
        (path if entry.endswith("/") else path.parent).mkdir(exist_ok=True)
        if not entry.endswith("/"):
            path.write_text("x")
    assert foreign_files(source) == [entry.split("/")[0]]


def test_files_that_belong_to_a_checkpoint(source: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes", ".DS_Store", "model-00001-of-00002.safetensors",
                 "training_state.json", "special_tokens_map.json"):
        (source / name).write_text("{}")
    (source / ".cache/huggingface").mkdir(parents=True)
    assert foreign_files(source) == []


def test_a_checkpoint_is_replaced_on_request(tmp_path: Path, source: Path) -> None:
    out = write_random_checkpoint(tmp_path / "out", "tiny-31b")
    config = (out / "config.json").read_bytes()
    line = failure("quantize", "-m", source, "--out", out)
    assert "--overwrite" in line and str(out) in line and (out / "config.json").read_bytes() == config
    assert gemma4("quantize", "-m", source, "--out", out, "--overwrite").code == 0
    assert load_pretrained(out, device="cpu").format_name == "int8"
    line = failure("demo", "--keep", out)
    assert "--overwrite" in line
    with pytest.raises(CheckpointError, match="--overwrite"):
        quantize(source, out, overwrite=False)
    (tmp_path / "empty").mkdir()
    assert gemma4("quantize", "-m", source, "--out", tmp_path / "empty").code == 0


def test_a_file_that_comes_while_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for exchange in (atomic.exchange, lambda one, other: False):
        target = write_random_checkpoint(tmp_path / "out", "tiny-e2b")
        config = (target / "config.json").read_bytes()

        def late(one: Path, other: Path, exchange: Any = exchange, target: Path = target) -> bool:
            (target / "thesis.txt").write_text("at the last moment") if not (one / "thesis.txt").exists() else None
            return exchange(one, other)

        monkeypatch.setattr(atomic, "exchange", late)
        with pytest.raises(CheckpointError, match="thesis"), atomic_folder(target) as temporary:
            (temporary / "config.json").write_text("new")
        assert (target / "thesis.txt").exists() and (target / "config.json").read_bytes() == config
        assert names(tmp_path) == {"out"}
        shutil.rmtree(target)


def test_old_steps_with_foreign_files_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3, 4):
        folder.step(step).mkdir()
        (folder.step(step) / "training_state.json").write_text("{}")
    (folder.step(1) / "notes.md").write_text("the best one so far")
    folder.saved(4, keep=2)
    assert names(tmp_path) == {"step-1", "step-3", "step-4", "last"}


# ------------------------------------------------------------------------------------------------- copying


def test_links_to_files_outside_are_not_copied(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    (source / "notes.txt").symlink_to(secret)
    (source / "vocab.json").symlink_to(secret)
    (source / "special_tokens_map.json").symlink_to("absent")
    os.mkfifo(source / "merges.txt")
    (source / "README.md").write_text("a model")
    (source / "LICENSE").write_text("terms")
    (source / "chat_template.json").symlink_to("README.md")
    model = load_pretrained(source, device="cpu")
    quantize(source, tmp_path / "q")
    save_training_checkpoint(model, tmp_path / "s")
    said = capsys.readouterr().err
    for name in ("notes.txt", "vocab.json", "special_tokens_map.json", "merges.txt"):
        assert name in said and said.count("\n") == 1
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "README.md", "LICENSE", "chat_template.json", "model.safetensors"}
    assert names(tmp_path / "q") == kept and names(tmp_path / "s") == kept | {"training_state.json"}
    assert not any(path.is_symlink() for path in (tmp_path / "q").iterdir())


def test_links_of_the_hub_cache_are_copied(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "0123456789abcdef" * 4
    repository = tmp_path / "disk" / "models--google--gemma"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "blobs" / digest).write_text("{}")
    snapshot = source.rename(repository / "snapshots" / "abc")
    (snapshot / "vocab.json").symlink_to(f"../../blobs/{digest}")
    (tmp_path / "cache").symlink_to(tmp_path / "disk")  # the cache is on another disk

    def copied(folder: Path) -> bool:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        copy_others(Context(folder), tmp_path / "out")
        return (tmp_path / "out" / "vocab.json").exists()

    assert copied(snapshot) and copied(tmp_path / "cache" / repository.name / "snapshots" / "abc")
    (repository / "blobs").rename(tmp_path / "blobs elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "blobs elsewhere")
    assert copied(snapshot)
    # what is no blob by its name does not come along, wherever ``blobs`` leads
    (tmp_path / "blobs elsewhere" / digest).rename(tmp_path / "blobs elsewhere" / "id_rsa")
    (snapshot / "vocab.json").unlink()
    (snapshot / "vocab.json").symlink_to("../../blobs/id_rsa")
    assert not copied(snapshot) and "vocab.json" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "blobs elsewhere"))
    assert copied(snapshot)


def test_a_format_with_files_of_its_own_is_replaced_too(tmp_path: Path) -> None:
    from gemma4_core.checkpoint.folder import write_config

    out = tmp_path / "out"
    for number in (1, 2):
        with atomic_folder(out) as temporary:
            (temporary / "weights.npz").write_text(str(number))
            write_config(json.loads((load("dense").folder / "config.json").read_text()), "float32", temporary)
    assert (out / "weights.npz").read_text() == "2" and foreign_files(out) == []
    (out / "thesis.txt").write_text("x")
    assert foreign_files(out) == ["thesis.txt"]
