"""Checkpoints by name, with the hub's functions replaced: nothing here uses the network."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from gemma4_core.checkpoint.hub import download, repository, resolve_folder
from gemma4_core.errors import CheckpointError


class Hub:
    """Stands for ``snapshot_download``: remembers calls, gives a folder or raises."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def __call__(self, name: str, **options: Any) -> str:
        self.calls.append({"name": name, **options})
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def install(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> Hub:
    hub = Hub(answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def http_fault(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind("long\nstory", response=Mock(status_code=status, headers={}))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("e2b", "google/gemma-4-E2B"),
        ("E2B-it", "google/gemma-4-E2B-it"),
        ("26b-a4b", "google/gemma-4-26B-A4B"),
        ("gemma-4-31b-it", "google/gemma-4-31B-it"),
        ("google/gemma-4-e4b-it", "google/gemma-4-E4B-it"),
        ("someone/gemma-4-finetune", "someone/gemma-4-finetune"),
        ("e3b", None),
        ("../x", None),
        ("a/b/c", None),
        ("", None),
    ],
)
def test_names(alias: str, name: str | None) -> None:
    assert repository(alias) == name


def test_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = install(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e2b").mkdir()
    assert resolve_folder("e2b") == Path("e2b") and resolve_folder(tmp_path) == tmp_path
    assert not hub.calls


def test_cached_model_is_found_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = install(monkeypatch, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert resolve_folder("E2B-it") == tmp_path
    assert hub.calls == [{"name": "google/gemma-4-E2B-it", "local_files_only": True}]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("e2b", "gemma4 download --sizes E2B"),
        ("google/gemma-4-26B-A4B-it", "gemma4 download --sizes 26B-A4B --it"),
        ("me/mine", "hf download me/mine"),
    ],
)
def test_model_that_is_not_cached(monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> None:
    install(monkeypatch, errors.LocalEntryNotFoundError("no"))
    with pytest.raises(CheckpointError) as caught:
        resolve_folder(name)
    assert name in str(caught.value) and command in str(caught.value) and "\n" not in str(caught.value)


def test_snapshot_without_a_config_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match="gemma4 download"):
        resolve_folder("e4b")


def test_real_cache_layout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "models--google--gemma-4-E2B"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_folder("e2b").resolve() == snapshot.resolve()


@pytest.mark.parametrize("name", ["", "no/such/folder", "./missing", "x" * 5000, "a\0b", "two\nlines"])
def test_neither_folder_nor_name(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_folder(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_download_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = install(monkeypatch, tmp_path)
    assert download(["e2b", "31B", "E2B"], it=True) == [tmp_path, tmp_path]
    assert [call["name"] for call in hub.calls] == ["google/gemma-4-E2B-it", "google/gemma-4-31B-it"]
    assert all(call["local_dir"] is None and "*.safetensors" in call["allow_patterns"] for call in hub.calls)


def test_download_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = install(monkeypatch, tmp_path)
    download(["26B-A4B"], models_dir=tmp_path)
    assert hub.calls[0]["local_dir"] == tmp_path / "gemma-4-26B-A4B"


def test_unknown_size_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = install(monkeypatch, Path())
    with pytest.raises(CheckpointError, match=r'"12B".*E2B, E4B, 26B-A4B, 31B'):
        download(["E2B", "12B"])
    assert not hub.calls


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (errors.LocalEntryNotFoundError("x"), "check the network"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (http_fault(errors.GatedRepoError, 403), "accept its terms"),
        (http_fault(errors.RepositoryNotFoundError, 401), "hf auth login"),
        (http_fault(errors.HfHubHTTPError, 503), "answered 503"),
        (ConnectionError("refused"), "check the network"),
        (TimeoutError("slow"), "check the network"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_download_faults_are_one_line(monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str) -> None:
    install(monkeypatch, fault)
    with pytest.raises(CheckpointError) as caught:
        download(["E2B"])
    message = str(caught.value)
    assert said in message and "google/gemma-4-E2B" in message and "\n" not in message and len(message) < 500


def test_defects_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        download(["E2B"])
