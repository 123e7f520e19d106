"""docs/origin.md: every line of its tables and every Python block runs, so that the page and the project agree."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import re
import shlex
import tomllib
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_tools import good, repository, script
from cli_tools import Ran, gemma4
from click.testing import CliRunner
from PIL import Image
from tiny_model import tiny_config, write_tiny_checkpoint

from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_plugins.commands.generate import generate_command

pytestmark = pytest.mark.usefixtures("plain_loops")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "origin.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[tuple[str, str]]:
    """Lines there and here in the table of a section."""
    found = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", section(title), re.MULTILINE)
    assert len(found) == len(re.findall(r"^\| `", section(title), re.MULTILINE)) > 0
    return [(there.replace(r"\|", "|"), here.replace(r"\|", "|")) for there, here in found]


@dataclasses.dataclass
class Place:
    """Files that stand for those of the page."""

    model: Path
    """With a tokenizer of 512 ids."""
    ids: Path
    """Without tokenizer, and with all ids that the page uses."""
    image: Path
    sound: Path

    def filled(self, text: str) -> str:
        """A line with the page's paths replaced."""
        model = self.ids if "--prompt-tokens" in text else self.model
        for old, new in (("/path/to/google-gemma-4-checkpoint", model), ("/path/to/model", self.model),
                         ("/path/to/input.png", self.image), ("/path/to/image.png", self.image),
                         ("/path/to/input.wav", self.sound)):
            text = text.replace(old, str(new))
        assert "/path/to" not in text
        return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("origin")
    larger = tiny_config()
    larger["text_config"] |= {"vocab_size": 2048, "vocab_size_per_layer_input": 2048}
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "input.png")
    with wave.open(str(folder / "input.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        tone = np.sin(np.arange(8000) * 0.17) * 12_000
        sound.writeframes(tone.astype("<i2").tobytes())
    model = write_tiny_checkpoint(folder / "model")
    (model / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 70}}))
    greedy = {"generation_config.json": b'{"do_sample": false}'}
    ids = write_random_checkpoint(folder / "ids", larger, extra_files=greedy)
    return Place(model, ids, folder / "input.png", folder / "input.wav")


@pytest.fixture(autouse=True)
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--beam max`` as on the page, with less width and time than a user would give it."""
    from gemma4_core import loading
    from gemma4_core.contracts import DeviceSettings

    monkeypatch.setenv("TINYGRAD_GEMMA_MAX_BEAM", "1")
    monkeypatch.setattr(loading, "DeviceSettings", lambda beam: DeviceSettings(beam, 2.0))


def run(line: str) -> Ran:
    """A command line of the page, in this process."""
    program, *args = shlex.split(line)
    if program == "gemma4":
        return gemma4(*args)
    assert program == "tinygrad-gemma"
    result = CliRunner().invoke(generate_command, args, prog_name=program)
    return Ran(result.exit_code, result.stdout, result.stderr)


def name_of(row: tuple[str, str]) -> str:
    return re.sub(r"\W+", "-", row[0].replace("/path/to/google-gemma-4-checkpoint", ""))[:60].strip("-")


GENERATES = [row for row in rows("Commands") if row[1].startswith("tinygrad-gemma ")]


@pytest.mark.parametrize("row", GENERATES, ids=name_of)
def test_generation_lines_run_as_they_stand(row: tuple[str, str], place: Place) -> None:
    there, here = row
    assert there == here  # these promise to work unchanged
    ran = run(place.filled(here))
    assert (ran.code, ran.err) == (0, "") and ran.out.endswith("\n")
    if "--image" in here:
        return
    found = json.loads(run(place.filled(here) + " --json").out)
    limit = int(re.findall(r"--max-new-tokens (\d+)", here)[0])
    assert 0 < len(found["tokens"]) <= limit and found["finish_reason"] in ("stop", "length")
    if "--prompt-tokens" in here:
        assert found["prompt_tokens"] == 3 and ran.out == ",".join(map(str, found["tokens"])) + "\n"
    else:
        assert ran.out.rstrip("\n") == found["text"].rstrip("\n")


def test_the_other_command_lines_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[str] = []
    monkeypatch.chdir(tmp_path)
    for size in ("E2B", "E4B", "26B-A4B", "31B"):
        write_tiny_checkpoint(tmp_path / f"gemma-4-{size}")

    def snapshot_download(name: str, **settings: Any) -> str:
        fetched.append(name)
        return f"/cache/{name}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    others = [here for _, here in rows("Commands") if not here.startswith("tinygrad-gemma ")]
    runs: dict[str, Callable[[], bool]] = {
        "gemma4 download": lambda: len(fetched) == 4,
        "gemma4 quantize": lambda: len(list(tmp_path.glob("gemma-4-*-int8/model*.safetensors"))) == 4,
    }
    for here in others:
        assert run(here).code == 0, here
        assert runs[" ".join(here.split()[:2])]()


def test_extras_of_the_set_up_line_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [line] = [here for _, here in rows("Setting up") if "pip install" in here]
    wanted = re.findall(r"\[(.+)\]", line)[0].split(",")
    assert set(wanted) <= set(project["optional-dependencies"]) and "cpu" in project["optional-dependencies"]
    assert {"gemma4", "tinygrad-gemma"} <= set(project["scripts"])


def imported(line: str) -> list[Any]:
    """What an import line gives. Raises ImportError and AttributeError."""
    module, names = re.fullmatch(r"from (\w+) import (.+)", line).groups()  # type: ignore[union-attr]
    return [getattr(importlib.import_module(module), name.strip()) for name in names.split(",")]


@pytest.mark.parametrize("row", rows("Imports"), ids=name_of)
def test_imports(row: tuple[str, str]) -> None:
    there, here = row
    assert there.replace("tinygrad_gemma", "gemma4_core") == here
    assert all(imported(here))


@pytest.mark.parametrize("number", range(len(re.findall("^```python$", PAGE, re.MULTILINE))))
def test_python_blocks(number: int, place: Place) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]
    names: dict[str, Any] = {}
    exec(compile(place.filled(code), f"docs/origin.md, block {number}", "exec"), names)
    if "logits" in names:
        logits, prepared = names["logits"].numpy(), names["prepared"]
        assert logits.shape == (1, len(prepared.input_ids), 512) and np.isfinite(logits).all()
        assert names["cache"].length == len(prepared.input_ids)


@pytest.fixture(scope="module")
def workplace(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with checkpoints, two worktrees, and what a matrix left behind."""
    readme = {"README.md": "see benchmarks/old.csv.progress.jsonl"}
    folder = repository(tmp_path_factory.mktemp("work") / "repo", readme)
    for experiment in ("exp_0005", "exp_0013"):
        worktree = folder / ".evo/run_0000/worktrees" / experiment
        worktree.mkdir(parents=True)
        (worktree / "src").symlink_to(ROOT / "src")
    (folder / "gemma-4-E2B").symlink_to(place.model)
    assert gemma4("quantize", "--models-dir", folder, "--sizes", "E2B").code == 0
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks/old.csv.progress.jsonl").write_text("{}\n")
    return folder


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=name_of((row[1][17:], "")), marks=pytest.mark.slow if "paired.py" in row[1] else [])
     for row in rows("Benchmarks")],
)  # fmt: skip
def test_benchmark_lines_run(
    row: tuple[str, str], place: Place, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = row
    monkeypatch.chdir(workplace)
    program, path, *args = shlex.split(place.filled(here).replace("$(date +%F)", "today"))
    assert program == "python" and (ROOT / path).is_file()
    monkeypatch.setattr(script("matrix"), "measured", lambda device: None)
    ran = good(Path(path).stem, *args)
    if path.endswith("matrix.py"):
        assert there.split(" ", 2)[2] == here.split(" ", 2)[2]  # the same options
        with open(args[args.index("--out") + 1], newline="") as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(ran.out.splitlines()) and {row["device"] for row in found} == {"metal"}
        assert {row["status"] for row in found} <= {"ok", "unavailable", "missing"}
    elif path.endswith("paired.py"):
        found = json.loads(Path("benchmarks/paired-exp0005-exp0013-hash16.json").read_text())
        both = [found[side]["payload"] for side in ("baseline", "candidate")]
        assert both[0]["tokens_sha256"] == both[1]["tokens_sha256"] and both[0]["generated_tokens"] == 16
        assert found["label"] == "exp0005-vs-exp0013-hash16" and found["relative_delta"] is not None
    elif "--output" in args:
        assert "benchmarks/old.csv.progress.jsonl" in Path(args[-1]).read_text() and ran.out == ""
    elif "json" in args:
        [found_row] = [row for row in json.loads(ran.out)["rows"] if "old" in row["path"]]
        assert found_row["reference_count"] == 1
    else:
        assert "benchmark-progress-log" in ran.out.splitlines()
