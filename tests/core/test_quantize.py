"""``gemma4 quantize``: whole, resumable, and nothing lost."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_tools import failure, gemma4, start, usage
from reference_data import load, load_multimodal

from gemma4_core import load_pretrained, quantizable, registry, save_training_checkpoint
from gemma4_core.checkpoint import CheckpointFiles, write_random_checkpoint, writer
from gemma4_core.checkpoint import rewrite as module
from gemma4_core.checkpoint.roles import Roles
from gemma4_core.config import expected_text_tensors, preset_config
from gemma4_core.quantize import quantize


def content(folder: Path) -> dict[str, bytes]:
    files = CheckpointFiles.open(folder)
    return {name: bytes(files.bytes(name)) for name in files}


@pytest.mark.parametrize("name", ["e2b", "moe", "e2b-mm"])
def test_as_the_model_saves_itself(tmp_path: Path, name: str) -> None:
    source = load_multimodal(name).folder(tmp_path / "mm") if name.endswith("mm") else load(name).folder
    assert gemma4("quantize", "--model-dir", source, "--out", tmp_path / "q").out == f"{tmp_path / 'q'}\n"
    save_training_checkpoint(load_pretrained(source, device="cpu"), tmp_path / "s", quantize="int8")
    assert content(tmp_path / "q") == content(tmp_path / "s")
    one, two = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in "qs")
    assert one == two
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = load("moe").folder, tmp_path / "q"
    quantize(source, tmp_path / "whole")
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    written: list[str] = []
    save = writer.sync_path

    def stop_at_third(path: Path) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        save(path)

    monkeypatch.setattr(writer, "sync_path", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out)
    assert not out.exists()
    quantize(source, out)
    for number, times in ((1, 1), (2, 1), (3, 2)):
        assert [name.startswith(f"model-0000{number}-of") for name in written].count(True) == times
    assert len(list(out.glob("model-*-of-*.safetensors"))) >= 4 and not (out / "model.safetensors").exists()
    assert content(out) == content(tmp_path / "whole")
    assert load_pretrained(out, device="cpu").format_name == "int8"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


SLOW = """
import sys, time
from gemma4_core.checkpoint import rewrite, writer
from gemma4_core.quantize import quantize
rewrite.SHARD_BYTES = 30_000
sync = writer.sync_path
def slowly(path):
    sync(path)
    time.sleep(0.3)
writer.sync_path = slowly
quantize(sys.argv[1], sys.argv[2])
"""


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = load("moe").folder, tmp_path / "q"
    quantize(source, tmp_path / "whole")
    quantize(load("dense").folder, out)
    before, finished = content(out), tmp_path / ".q.quantizing/finished"
    process = start(SLOW, source, out)
    while not [*finished.glob("model-00002-of-*.safetensors")] and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and content(out) == before
    [second] = finished.glob("model-00002-of-*.safetensors")
    made = second.stat().st_mtime_ns
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    swap, kept = module.swap, []
    monkeypatch.setattr(module, "swap", lambda *to: (kept.append(second.stat().st_mtime_ns), swap(*to)))
    quantize(source, out)
    assert kept == [made] and sorted(p.name for p in tmp_path.iterdir()) == ["q", "whole"]
    assert content(out) == content(tmp_path / "whole")


FULL = """
import resource, sys
from gemma4_core.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
sys.argv[1:1] = ["quantize", "--model-dir"]
main()
"""


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = load("moe").folder, tmp_path / "q"
    quantize(load("dense").folder, out)
    before = content(out)
    process = start(FULL, source, "--out", out, "--overwrite", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr.count("\n")) == (1, "", 1)
    assert f"{out}: the disk is full, nothing was changed there" in stderr and content(out) == before
    quantize(source, out)
    assert content(out) != before and [p.name for p in tmp_path.iterdir()] == ["q"]
    few = SimpleNamespace(free=1000)
    monkeypatch.setattr("gemma4_core.checkpoint.writer.shutil.disk_usage", lambda folder: few)
    line = failure("quantize", "-m", source, "--out", tmp_path / "other")
    assert f"{tmp_path / 'other'}: 1.00 kB are free there, " in line and " kB are needed; free some space" in line
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("size", ["E2B", "E4B", "26B-A4B", "31B"])
def test_folders_of_official_sizes_are_little_more_than_half(size: str) -> None:
    config = preset_config(size)
    text = expected_text_tensors(config)
    plain = registry.expected_tensors(config)
    whole = {name: 2 * math.prod(shape) for name, shape in plain.items()}
    roles = Roles(config)
    packed = {name: math.prod(shape) + 4 * math.prod(shape[:-1]) if quantizable(name, roles.of(name, shape))
              else whole[name] for name, shape in plain.items()}
    assert 0.5 < sum(packed.values()) / sum(whole.values()) < 0.57
    assert 0.5 < sum(packed[name] for name in text) / sum(whole[name] for name in text) < 0.51


def test_work_for_another_source_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(work: Path, *rest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_tree", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(load("moe").folder, tmp_path / "q")
    assert (tmp_path / ".q.quantizing/finished/model.safetensors").is_file()
    quantize(load("dense").folder, tmp_path / "q")
    assert "moe" not in content(tmp_path / "q") and len(content(tmp_path / "q")) > 10
    assert load_pretrained(tmp_path / "q", device="cpu").config.text_config.enable_moe_block is False


def test_folders_beside_downloaded_ones(tmp_path: Path) -> None:
    for name in ("gemma-4-E2B", "gemma-4-E4B-it"):
        write_random_checkpoint(tmp_path / name, "tiny-e2b", towers=False)
    ran = gemma4("quantize", "--models-dir", tmp_path, "--sizes", "e2b", "E4B-it")
    assert ran.out.splitlines() == [f"{tmp_path}/gemma-4-E2B-int8", f"{tmp_path}/gemma-4-E4B-it-int8"]
    size = lambda name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors"))  # noqa: E731
    assert size("gemma-4-E2B-int8") < 0.6 * size("gemma-4-E2B")
    shutil.rmtree(tmp_path / "gemma-4-E2B")
    assert "exists already" in gemma4("quantize", "--models-dir", tmp_path, "--sizes", "E2B").err
    assert "E3B" in failure("quantize", "--models-dir", tmp_path, "--sizes", "E3B")


def test_errors(tmp_path: Path) -> None:
    quantize(load("moe").folder, tmp_path / "q")
    before = content(tmp_path / "q")
    line = failure("quantize", "-m", tmp_path / "q", "--out", tmp_path / "again")
    assert "quantised already" in line and "I8" in line and not (tmp_path / "again").exists()
    assert "itself" in failure("quantize", "-m", tmp_path / "q", "--out", tmp_path / "q")
    assert "absent" in failure("quantize", "-m", tmp_path / "absent", "--out", tmp_path / "again")
    assert "int9" in failure("quantize", "-m", load("moe").folder, "--out", tmp_path / "again", "--format", "int9")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    assert "mine" in failure("quantize", "-m", load("moe").folder, "--out", tmp_path / "mine")
    assert (tmp_path / "mine/letter").read_text() == "dear" and content(tmp_path / "q") == before
    assert "--model-dir" in usage("quantize")
    assert "--out" in usage("quantize", "-m", "x")
    assert "--sizes" in usage("quantize", "--models-dir", tmp_path)
