"""``gemma4 doctor``: this machine, and verifying a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.random_weights import write_random_checkpoint
from gemma4_core.config import MODELS, preset_config
from gemma4_core.text.tiny import copy_tiny_tokenizer
from gemma4_plugins.commands.doctor import command
from gemma4_plugins.commands.doctor import machine as doctor
from gemma4_plugins.commands.doctor import verification as verify


def run(*args: str) -> Result:
    return CliRunner().invoke(command.doctor_command, [*args], prog_name="gemma4 doctor")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> doctor.Report:
    """A report that is there already: opening every device takes a second."""
    report = doctor.Report(
        versions={"tinygrad-gemma4": "1.2", "tinygrad": "0.14.0"}, python="3.11", system="Linux", cores=2, threads=2,
        total_bytes=8 * 10**9, free_bytes=None,
        devices=(
            doctor.DeviceReport("cpu", True, None, {"compiler": "ziglang"}, 10**9),
            doctor.DeviceReport("cuda", False, "no driver; install it"),
        ),
        auto="cpu", plugins=("cpu (device)",), blocked=("nv",), problems=("plugin 'x' failed: E",),
        folders={"cache": "/c"}, environment={"DEV": "CPU"},
    )  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda environment: report)
    return report


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with tokenizer and template."""
    folder = tmp_path_factory.mktemp("doctor") / "tiny"
    write_random_checkpoint(folder, "tiny-e2b", towers=False)
    copy_tiny_tokenizer(folder)
    return folder


def found(checks: Any, name: str) -> list[tuple[str, str]]:
    return [(check.status, check.text) for check in checks if check.name == name]


# ------------------------------------------------------------------------------------------------ the machine


def test_report_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_THREADS", "2")
    monkeypatch.setenv("GEMMA4_API_KEY", "hush")
    report = doctor.examine()
    devices = {device.name: device for device in report.devices}
    assert devices["cpu"].usable and devices["cpu"].details["threads"].startswith("2")
    assert "clang" in devices["cpu"].details["compiler"]
    assert all(device.usable or device.reason for device in report.devices)
    assert [device.name for device in report.devices][:5] == ["metal", "cuda", "nv", "amd", "cpu"]
    assert report.auto is not None and devices[report.auto].usable
    assert report.versions["tinygrad"].startswith("0.14.") and report.versions["numpy"]
    assert report.environment["GEMMA4_THREADS"] == "2" and report.environment["GEMMA4_API_KEY"] == "(set)"
    assert "bf16 (format)" in report.plugins
    json.dumps(report.as_dict())


def test_command_in_a_process_of_its_own() -> None:
    environment = {**os.environ, "GEMMA4_DISABLE_PLUGINS": "nv,nonsense", "CC": "/no/such/cc"}
    environment.pop("DEV", None)
    done = subprocess.run(
        [sys.executable, "-m", "gemma4_core.cli", "doctor", "--json"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    cpu = next(device for device in report["devices"] if device["name"] == "cpu")
    assert cpu["details"]["passed over CC=/no/such/cc"] == "is not the path of one program"
    assert report["environment"]["CC"] == "/no/such/cc"  # as the user set it, not as we did
    assert report["blocked"] == ["nv"]
    assert any("nonsense" in problem for problem in report["problems"])


def test_text_for_people(quick: doctor.Report) -> None:
    ran = run()
    assert (ran.exit_code, ran.stderr) == (0, "")
    for line in ("  cpu   usable, 1.00 GB free", "          compiler: ziglang", "  cuda  no: no driver; install it",
                 "blocked: nv", "! plugin 'x' failed: E", "DEV=CPU", "devices (--device auto takes cpu)"):  # fmt: skip
        assert line in ran.stdout.splitlines()


def test_wrong_tinygrad_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: ([], None))
    monkeypatch.setattr(doctor, "_versions", lambda: {"tinygrad-gemma4": "1", "tinygrad": "0.15.1"})
    monkeypatch.setenv("GEMMA4_THREADS", "many")
    problems = doctor.examine().problems
    assert any("tinygrad is 0.15.1" in problem for problem in problems)
    assert any("GEMMA4_THREADS='many'" in problem for problem in problems)


# ------------------------------------------------------------------------------------------------ a checkpoint


@pytest.mark.usefixtures("plain_loops")
def test_sound_checkpoint(quick: doctor.Report, tiny: Path) -> None:
    ran = run("--model-dir", str(tiny), "--device", "cpu", "--json")
    assert (ran.exit_code, ran.stderr) == (0, "")
    checks = [verify.Check(**check) for check in json.loads(ran.stdout)["model"]["checks"]]
    assert [(check.name, check.status) for check in checks] == [
        ("config", "note"), ("tensors", "ok"), ("tokenizer", "ok"), ("template", "ok"), ("load", "ok"),
        ("logits", "ok"), ("generate", "ok"),
    ]  # fmt: skip


def test_damaged_checkpoint_fails_with_one_line(quick: doctor.Report, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    ran = run("-m", str(folder), "--device", "cpu")
    assert ran.exit_code == 1
    assert ran.stderr.count("\n") == 1 and ran.stderr.startswith(f"Error: {folder}: 3 of 5 checks failed: tensors: ")
    for name in ("tensors", "template", "run"):
        assert f"  FAILED {name}: " in ran.stdout
    assert "model.safetensors" in ran.stderr


@pytest.mark.parametrize("name", ["no-such-folder", "empty"])
def test_no_checkpoint_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = run("--model-dir", str(tmp_path / name))
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1 and name in ran.stderr


def test_official_sizes_are_known_by_their_shape() -> None:
    for size in ("E2B", "E4B", "26B-A4B", "31B"):
        config = preset_config(size)
        assert verify.official_size(config) == size
        assert [check.status for check in verify.check_config(config, size)] == ["ok"]
    assert verify.official_size(preset_config("tiny-e2b")) is None


def test_config_that_differs_from_the_published_one() -> None:
    config = preset_config("E2B")
    text = dataclasses.replace(config.text_config, sliding_window=1024, max_position_embeddings=8192)
    changed = dataclasses.replace(config, text_config=text, media={"vision_config": config.media["vision_config"]})
    checks = list(verify.check_config(changed, "E2B"))
    assert found(checks, "config") == [
        ("failed", "differs from the published E2B: text_config.sliding_window is 1024, published 512"),
        ("note", "differs from the published E2B: text_config.max_position_embeddings is 8192, published 131072; "
                 "audio_config is absent"),
    ]  # fmt: skip


class Source:
    """Tensors of which every element has one value."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values
        self.infos = dict.fromkeys(values)

    def tensor(self, name: str, device: str, dtype: Any) -> Any:
        return SimpleNamespace(numpy=lambda: np.full(4, self.values[name], np.float32))


E2B: Any = MODELS["E2B"].published


def published(place: int = 0) -> dict[str, float]:
    """As bf16 has them; the other feed-forward part has bounds of its own."""
    values = {f"model.language_model.{name}": value for name, value in E2B.tuned_values.items()}
    for index, prefix in enumerate(E2B.tuned_places):
        values |= {prefix + name: value if index == place else 1.0 for name, value in E2B.tuned_bounds.items()}
    return {name: round(value * 512) / 512 if abs(value) > 1 else value for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        (published(), "ok"),
        (published(1), "ok"),
        ({name: value for name, value in published().items() if "audio" not in name}, "ok"),
        (published(2), "failed"),
        ({name: value * 1.01 for name, value in published().items()}, "note"),
        (published() | {"model.language_model.layers.13.layer_scalar": 0.5}, "failed"),
    ],
)
def test_values_of_e2b_it(values: dict[str, float], status: str) -> None:
    (check,) = verify.check_values(preset_config("E2B"), Source(values), "E2B")  # type: ignore[arg-type]
    assert check.status == status, check


def test_counts_of_the_release() -> None:
    infos: Any = dict.fromkeys(range(2011))
    assert [c.status for c in verify._counts(infos, 5_123_178_979, "E2B")] == ["ok"]
    assert [c.status for c in verify._counts(infos, 5_123_178_978, "E2B")] == ["note"]
    assert list(verify._counts(infos, 1, "31B")) == []


class Released:
    """A tokenizer that answers as the released one, but for what it is told."""

    vocab_size = verify.OFFICIAL_VOCABULARY

    def __init__(self, special: Mapping[str, int], encodings: Mapping[str, list[int]]) -> None:
        self.special_tokens = {**verify.SPECIAL_IDS, **special}
        self.encodings = {**verify.ENCODINGS, **encodings}

    def encode(self, text: str) -> list[int]:
        return self.encodings[text]


@pytest.mark.parametrize(
    ("special", "encodings", "status", "said"),
    [
        ({}, {}, "ok", "23 special ids and 7 encodings as published"),
        ({"<turn|>": 105}, {}, "failed", "<turn|> is 105, published 106"),
        ({}, {"3333": [1]}, "failed", "'3333' encodes to [1], published [236800"),
    ],
)
def test_released_tokenizer(
    special: dict[str, int], encodings: dict[str, list[int]], status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemma4_core.plugins import registry

    context: Any = SimpleNamespace(config=preset_config("E2B"))
    backend = SimpleNamespace(name="huggingface", load=lambda context: Released(special, encodings))
    monkeypatch.setattr(registry, "select", lambda *args: backend)
    (check,) = verify.check_tokenizer(context, "auto")
    assert check.status == status and said in check.text


def test_tokenizer_larger_than_the_model(tiny: Path) -> None:
    context = read_context(tiny)
    assert context.config is not None
    small = dataclasses.replace(context.config.text_config, vocab_size=100)
    shrunk = dataclasses.replace(context, config=dataclasses.replace(context.config, text_config=small))
    first = next(verify.check_tokenizer(shrunk, "auto"))
    assert (first.status, first.text) == ("failed", "it has 512 tokens, the model 100")


@pytest.mark.parametrize(
    ("logits", "official", "status"),
    [
        (np.eye(1, 64)[None] * 20, True, "ok"),
        (np.random.default_rng(1).standard_normal((1, 3, 4096)), True, "failed"),
        (np.random.default_rng(1).standard_normal((1, 3, 4096)), False, "ok"),
        (np.zeros((1, 3, 64)), False, "failed"),
        (np.full((1, 3, 64), np.nan), False, "failed"),
    ],
)
def test_logits(logits: np.ndarray, official: bool, status: str) -> None:
    model: Any = SimpleNamespace(forward_ids=lambda ids: (SimpleNamespace(numpy=lambda: logits), None))
    (check,) = verify.check_logits(model, [1, 2, 3], official)
    assert check.status == status, check
