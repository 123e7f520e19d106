"""Numbers that are none, or that no float holds, in every settings file: one line that names file and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import SOURCE
from train_tools import write_checkpoint

from gemma4_core import Gemma4Error, build_optimizer, load_pretrained, save_training_checkpoint
from gemma4_core.checkpoint.context import read_context
from gemma4_core.config import load_generation_config, preset_config
from gemma4_core.formatting import is_number
from gemma4_plugins.modalities.audio.processor import read_settings
from gemma4_plugins.modalities.vision.preprocess import read_grid

BAD = ["1" + "0" * 400, "-1" + "0" * 400, "NaN", "Infinity", "1e999", "true", "false", '"1"', "9" * 5000, "[1]"]


def refused(caught: pytest.ExceptionInfo[Gemma4Error], *parts: str) -> None:
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500 and all(part in line for part in parts), line


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("key", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "pad_token_id"])
def test_numbers_of_generation_config(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "generation_config.json").write_text(f'{{"do_sample": true, "{key}": {value}}}')
    with pytest.raises(Gemma4Error) as caught:
        load_generation_config(tmp_path, preset_config("tiny-e2b"))
    refused(caught, "generation_config.json", key)


def test_numbers_that_mean_off(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": -0.0, "top_p": 0, "min_p": 0.0, "top_k": 0}')
    found = load_generation_config(tmp_path, preset_config("tiny-e2b"))
    assert (found.temperature, found.top_p, found.min_p, found.top_k) == (0.0, None, None, None)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("section", "key"),
    [("feature_extractor", "sampling_rate"), ("feature_extractor", "mel_floor"), ("image_processor", "patch_size"),
     ("image_processor", "max_soft_tokens"), (None, "audio_ms_per_token")],
)
def test_numbers_of_processor_config(tmp_path: Path, section: str | None, key: str, value: str) -> None:
    context = read_context(write_checkpoint(tmp_path / "model"))
    text = f'{{"{key}": {value}}}'
    (tmp_path / "model/processor_config.json").write_text(text if section is None else f'{{"{section}": {text}}}')
    if section == "image_processor" and value == "false":
        read_grid(context)  # as where the key is absent
        return
    with pytest.raises(Gemma4Error) as caught:
        (read_grid if section == "image_processor" else read_settings)(context)
    refused(caught, str(tmp_path), key)


@pytest.mark.parametrize("value", [10**400, 10**5000, float("nan"), True], ids=["long", "very long", "nan", "true"])
def test_numbers_of_an_optimizer(tmp_path: Path, value: Any) -> None:
    model = load_pretrained(write_checkpoint(tmp_path / "model"), device="cpu")
    with pytest.raises(Gemma4Error) as caught:
        build_optimizer(model, lr=value)
    refused(caught, "lr")


def test_what_a_number_is() -> None:
    assert all(is_number(value) for value in (0, -0.0, 10**300, 1.5, -7))
    assert not any(is_number(value) for value in (True, None, "1", float("nan"), float("-inf"), 10**400, [1]))


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json", "generation_config.json"])
def test_a_fifo_as_processor_config_is_told(tmp_path: Path, name: str, kind: str) -> None:
    path = write_checkpoint(tmp_path / "model", towers=True) / name
    path.unlink(missing_ok=True)
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "link": lambda: path.symlink_to("absent")}[kind]()
    context = read_context(tmp_path / "model")
    with pytest.raises(Gemma4Error, match=r"not a regular file|link to a file that is absent") as caught:
        if name == "generation_config.json":
            load_generation_config(tmp_path / "model", preset_config("tiny-e2b"))
        read_grid(context)
    refused(caught, name)


def test_a_full_disk_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_pretrained(write_checkpoint(tmp_path / "model"), device="cpu")
    room = SimpleNamespace(free=12_345)
    monkeypatch.setattr("gemma4_core.checkpoint.writer.shutil.disk_usage", lambda folder: room)
    with pytest.raises(Gemma4Error, match=r"out: 12\.3 kB are free there, [1-9][0-9.]* [kM]B are needed"):
        save_training_checkpoint(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    optimizer = build_optimizer(model)
    room.free = 100_000_000
    step = SimpleNamespace(calls=0)

    def once(folder: Path) -> SimpleNamespace:
        step.calls += 1
        return room if step.calls == 1 else SimpleNamespace(free=0)

    monkeypatch.setattr("gemma4_core.checkpoint.writer.shutil.disk_usage", once)
    with pytest.raises(Gemma4Error, match="out: 0 B are free there"):  # the optimizer's state is counted too
        save_training_checkpoint(model, tmp_path / "out", optimizer)


def test_ctrl_c_while_python_starts() -> None:
    """What is imported before the command can catch it: as little as can be."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import gemma4_core.cli\n"
    code += "print(sorted(name for name in ('typing', 're', 'enum', 'json', 'click') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
