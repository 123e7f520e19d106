"""``gemma4 info``, ``download`` and ``demo``."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_tools import failure, gemma4, usage
from tiny_model import write_tiny_checkpoint

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_config
from gemma4_core.model.cache import capacity_for
from gemma4_core.model.slots import SlotStore
from gemma4_plugins.commands import memory_sizes as sizes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("demo") / "model")


def info(*args: object) -> dict[str, Any]:
    ran = gemma4("info", *args, "--json")
    assert (ran.code, ran.err) == (0, ""), ran
    return json.loads(ran.out)


def test_parameters_and_bytes_are_those_of_the_files(checkpoint: Path) -> None:
    about = info("-m", checkpoint)
    weights = checkpoint / "model.safetensors"
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    count = sum(math.prod(entry["shape"]) for entry in header.values())
    assert about["parameters"] == count and about["weight_bytes"] == 2 * count and about["tensors"] == len(header)
    assert (about["format"], about["files"], about["file_bytes"]) == ("bf16", 1, weights.stat().st_size)
    assert about["problem"] is None and about["size"] == "tiny-e2b" and about["dtype"] == "bfloat16"
    assert {tower["name"] for tower in about["towers"]} >= {"vision", "audio"}
    assert about["tokenizer"] == "huggingface" and about["chat_template"] == "chat_template.jinja"
    assert about["generation"]["stop_ids"] == [1, 16, 9]


def test_a_person_reads_the_same(checkpoint: Path) -> None:
    shown = gemma4("info", "-m", checkpoint).out
    for words in (str(checkpoint), "tiny-e2b shape", "6 layers (4 sliding over 16, 2 full; 3 share K/V)", "huggingface",
                  "per-layer embedding", "vision tower", "4096"):
        assert words in shown


@pytest.mark.parametrize(("size", "billions", "gigabytes"), [
    ("e2b", 5.10, 10.2), ("E4B", 8.0, 15.9), ("26B-A4B", 25.8, 51.6), ("31b", 31.3, 62.5),
])
def test_official_sizes_without_a_checkpoint(size: str, billions: float, gigabytes: float) -> None:
    about = info("--size", size)
    assert about["parameters"] / 1e9 == pytest.approx(billions, rel=0.01)
    assert about["weight_bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert about["memory"][-1]["context"] in (131_072, 262_144)
    totals = [need["total_bytes"] for need in about["memory"]]
    assert totals == sorted(totals) and totals[0] > about["weight_bytes"]


def test_experts_count_by_their_share() -> None:
    about = info("--size", "26B-A4B")
    assert about["active_parameters"] / 1e9 == pytest.approx(3.8, rel=0.02)
    assert "3.82 B active" in gemma4("info", "--size", "26B-A4B").out


def test_the_cache_formula_is_what_a_cache_takes() -> None:
    from gemma4_core.contracts import DeviceSettings
    from gemma4_core.devices import activate
    activate("cpu", DeviceSettings())

    class Model:
        config, chunk, longest_chunk, device, graphs_revision = preset_config("tiny-e2b"), 32, 48, "CPU", 0
        from tinygrad import dtypes

        dtype = dtypes.bfloat16

    for context in (100, 600, 4096):
        storage = SlotStore(Model, 1, capacity_for(context, 4096))  # type: ignore[arg-type]
        taken = sum(tensor.nbytes() for tensor in storage.layers if tensor is not None)
        assert sizes.cache_bytes(Model.config, context, 32, 48) == taken


def test_shared_keys_in_the_files_are_told_apart(tmp_path: Path) -> None:
    with_them = write_random_checkpoint(tmp_path / "with", "tiny-e2b", shared_kv=True)
    without = write_random_checkpoint(tmp_path / "without", "tiny-e2b")
    one, other = info("-m", with_them), info("-m", without)
    assert [part["name"] for part in one["parts"] if part["name"] == sizes.UNUSED] == [sizes.UNUSED]
    assert one["weight_bytes"] == other["weight_bytes"] and one["parameters"] == other["parameters"]


def test_text_only_and_tower_less_checkpoints(tmp_path: Path) -> None:
    about = info("-m", write_random_checkpoint(tmp_path / "text", "tiny-31b", text_only=True, dtype="float32"))
    assert about["towers"] == [] and about["model_type"] == "gemma4_text" and about["dtype"] == "float32"
    assert about["chat_template"] is None and about["tokenizer"] == "raw"
    model = load_pretrained(tmp_path / "text")
    taken = SlotStore(model, 1, capacity_for(512, model.max_context)).layers
    assert about["memory"][0]["cache_bytes"] == sum(tensor.nbytes() for tensor in taken if tensor is not None)


def test_files_that_do_not_fit_the_config_are_said_not_hidden(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    about = info("-m", tmp_path / "model")
    assert "mlp" in about["problem"] and "but " in gemma4("info", "-m", tmp_path / "model").out


def test_what_info_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMA4_MODEL_DIR", raising=False)
    assert "neither" in usage("info")
    assert "both" in usage("info", "-m", "x", "--size", "E2B")
    assert '"E9B"' in failure("info", "--size", "E9B")
    assert str(tmp_path) in failure("info", "-m", tmp_path)
    assert "--format 'gguf'" in failure("info", "-m", write_tiny_checkpoint(tmp_path / "m"), "--format", "gguf")


# ---------------------------------------------------------------------------------------------------- download


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that hands out folders; the list has what it was asked for."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.append({"name": name, **settings})
        return str(settings.get("local_dir") or f"/cache/{name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_the_origins_sizes_are_fetched(hub: list[dict[str, Any]]) -> None:
    ran = gemma4("download", "--sizes", "E2B", "E4B", "26B-A4B", "31B")
    names = ["google/gemma-4-E2B", "google/gemma-4-E4B", "google/gemma-4-26B-A4B", "google/gemma-4-31B"]
    assert [asked["name"] for asked in hub] == names
    assert (ran.code, ran.out, ran.err) == (0, "".join(f"/cache/{name}\n" for name in names), "")


def test_tuned_models_into_a_folder(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    ran = gemma4("download", "--sizes", "e2b,e4b", "--it", "--models-dir", tmp_path)
    assert ran.out.splitlines() == [str(tmp_path / "gemma-4-E2B-it"), str(tmp_path / "gemma-4-E4B-it")]
    assert [asked["name"] for asked in hub] == ["google/gemma-4-E2B-it", "google/gemma-4-E4B-it"]


def test_what_download_refuses(hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--sizes" in usage("download")
    assert '"E9B"' in failure("download", "--sizes", "E2B", "E9B") and not hub
    assert "'--size'" in usage("download", "--size", "E2B")

    def offline(name: str, **settings: Any) -> str:
        from huggingface_hub.errors import OfflineModeIsEnabled

        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    line = failure("download", "--sizes", "E2B")
    assert "google/gemma-4-E2B" in line and "HF_HUB_OFFLINE" in line


# ---------------------------------------------------------------------------------------------------- demo


def test_what_the_demo_refuses(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert str(tmp_path) in failure("demo", "--keep", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert "--device 'abacus'" in failure("demo", "--device", "abacus")
    assert not [name for name in os.listdir(tmp_path) if name != "mine.txt"]
