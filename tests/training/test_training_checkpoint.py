"""Training checkpoints: what they hold, what opens them, and that training goes on from them bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reference_data import load
from safetensors import safe_open
from short_models import short_folder
from training_tools import MLP, quick, short, snapshot

from gemma4_core import (
    Gemma4Error,
    GemmaTrainingBatch,
    build_optimizer,
    load_pretrained,
    load_training_checkpoint,
    save_training_checkpoint,
    train_step,
)
from gemma4_core.checkpoint import write_random_checkpoint

BATCH = GemmaTrainingBatch([5, 6, 7, 8])


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


def equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_three_and_three_steps_are_six(tmp_path: Path, dtype: str) -> None:
    model = short(dtype=dtype)
    optimizer = build_optimizer(model, lr=0.01, weight_decay=0.1, trainable=MLP)
    losses = []
    for step in range(6):
        if step == 3:
            save_training_checkpoint(model, tmp_path / "run", optimizer, {"step": 3, "seen": [1, 2]})
        losses.append(train_step(model, optimizer, BATCH).item())
    fresh = short(dtype=dtype)
    other = build_optimizer(fresh, lr=1.0, weight_decay=0.1, trainable=MLP)
    train_step(fresh, other, BATCH)  # a captured step, which must see what is loaded
    assert load_training_checkpoint(tmp_path / "run", fresh, other) == {"step": 3, "seen": [1, 2]}
    assert [train_step(fresh, other, BATCH).item() for _ in range(3)] == losses[3:]
    assert equal(snapshot(model), snapshot(fresh))
    opened = load_pretrained(tmp_path / "run", device="cpu")
    assert str(opened.dtype).endswith("bfloat16" if dtype == "bfloat16" else "float")


def test_the_folder_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    unknown = shutil.ignore_patterns("config_flat.json")
    source = shutil.copytree(load("e2b").folder, tmp_path / "source", ignore=unknown)
    (source / "chat_template.jinja").write_text("{{ bos_token }}")
    model = load_pretrained(source, device="cpu")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    save_training_checkpoint(model, tmp_path / "out")
    with safe_open(source / "model.safetensors", "np") as a, safe_open(tmp_path / "out/model.safetensors", "np") as b:
        assert set(a.keys()) == set(b.keys())
        assert all(a.get_slice(key).get_dtype() == b.get_slice(key).get_dtype() == "BF16" for key in a.keys())  # noqa: SIM118
    assert equal(snapshot(model), snapshot(load_pretrained(tmp_path / "out", device="cpu")))
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ bos_token }}"
    assert (tmp_path / "out/generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    written, config = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", source))
    assert written == config | {"dtype": "bfloat16"}
    save_training_checkpoint(model, source)  # over the folder that it was loaded from
    assert equal(snapshot(model), snapshot(load_pretrained(source, device="cpu")))


def test_towers_that_were_not_loaded_are_kept(tmp_path: Path) -> None:
    folder = short_folder("e2b-mm")
    model = load_pretrained(folder, device="cpu", modalities=("text",))
    save_training_checkpoint(model, tmp_path / "out")
    both = [load_pretrained(f, device="cpu", modalities=("vision", "audio")) for f in (folder, tmp_path / "out")]
    assert set(both[1].towers) == {"vision", "audio"} and equal(*(snapshot(m) for m in both))


def test_a_table_that_is_off_the_device_is_saved(tmp_path: Path) -> None:
    model = load_pretrained(load("e2b").folder, device="cpu", ple="disk")
    save_training_checkpoint(model, tmp_path / "plain")
    save_training_checkpoint(model, tmp_path / "int8", quantize="int8")
    whole = snapshot(load_pretrained(load("e2b").folder, device="cpu"))
    assert equal(whole, snapshot(load_pretrained(tmp_path / "plain", device="cpu")))
    assert load_pretrained(tmp_path / "int8", device="cpu").format_name == "int8"


def test_errors(tmp_path: Path) -> None:
    model = short()
    optimizer = build_optimizer(model, trainable=MLP)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(Gemma4Error, match="mine is neither empty nor a checkpoint"):
        save_training_checkpoint(model, tmp_path / "mine")
    with pytest.raises(Gemma4Error, match="training_metadata"):
        save_training_checkpoint(model, tmp_path / "no", training_metadata={"when": object()})
    with pytest.raises(Gemma4Error, match="int7"):
        save_training_checkpoint(model, tmp_path / "no", quantize="int7")
    assert not (tmp_path / "no").exists()
    save_training_checkpoint(model, tmp_path / "bare")
    before = snapshot(model)
    with pytest.raises(Gemma4Error, match=r"has no training_state\.safetensors"):
        load_training_checkpoint(tmp_path / "bare", model, optimizer)
    assert load_training_checkpoint(tmp_path / "bare", model) is None
    for metadata, said in (("x" * (17 << 20), "16 MiB"), ([[]] * (1 << 20), "a million"), ({1: 0, "1": 1}, "twice")):
        with pytest.raises(Gemma4Error, match=said):  # what could not be read again
            save_training_checkpoint(model, tmp_path / "no", training_metadata=metadata)
    save_training_checkpoint(model, tmp_path / "full", optimizer)
    for kind, patterns in (("sgd", MLP), ("adamw", "*.layers.1.mlp.*")):
        with pytest.raises(Gemma4Error, match="does not fit this"):
            load_training_checkpoint(tmp_path / "full", model, build_optimizer(model, kind, trainable=patterns))
    with pytest.raises(Gemma4Error, match="full"):
        load_training_checkpoint(tmp_path / "full", short("e2b"))
    (tmp_path / "full/training_state.safetensors").write_bytes(b"short")
    with pytest.raises(Gemma4Error, match=r"training_state\.safetensors"):
        load_training_checkpoint(tmp_path / "full", model, optimizer)
    with pytest.raises(Gemma4Error, match="absent"):
        load_training_checkpoint(tmp_path / "absent", model)
    assert equal(before, snapshot(model))


@pytest.mark.slow
def test_kills_while_saving_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", "tiny-e2b", towers=False)
    program = (
        "import sys; from gemma4_core import load_pretrained, save_training_checkpoint as save\n"
        "model = load_pretrained(sys.argv[1], device='cpu')\n"
        "print('go', flush=True)\n"
        "for step in range(100000): save(model, sys.argv[2], training_metadata={'step': step})\n"
    )
    out = tmp_path / "out"
    for delay in (0.01, 0.05, 0.12, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "model"), str(out)], stdout=subprocess.PIPE, env=os.environ
        )
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        while not out.exists():
            time.sleep(0.01)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        model = load_pretrained(out, device="cpu")
        assert load_training_checkpoint(out, model)["step"] >= 0
