"""What ``gemma4 demo`` shows: a text, a sum, a picture, a sound, and the model's speed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.cli.answers import show_all
from gemma4_core.cli.failures import escaped
from gemma4_core.formatting import human_bytes, human_count
from gemma4_plugins.commands.demo import PICTURE, SOUND, copy_demo, draw_picture, record_sound

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

GREETING = (
    "A tiny Gemma 4 that this project trained. It knows short sentences, sums, two shapes in a picture,\n"
    "and dialled keys; nothing else."
)
BEGINNING = "The hungry cat"
LONGEST_ANSWER = 40


@dataclass(frozen=True)
class Task:
    """One question to the demo model."""

    name: str
    asked: str
    truth: str | None
    """The right answer; None where many are right."""
    media: dict[str, list[Path]]


def tasks(folder: Path, seed: int | None) -> list[Task]:
    """The questions: a text to continue, a sum, a picture and a sound. Files are written into the folder.

    Raises CheckpointError where they cannot be written.
    """
    rng = np.random.default_rng(seed)
    first, second = (int(n) for n in rng.integers(100, 1000, 2))
    picture, scene = draw_picture(folder / PICTURE, rng)
    sound, number = record_sound(folder / SOUND, rng)
    return [
        Task("text", BEGINNING, None, {}),
        Task("sum", f"What is {first} + {second}?", str(first + second), {}),
        Task("picture", "Describe <|image|>.", scene, {"images": [picture]}),
        Task("sound", "Transcribe <|audio|>.", number, {"audio": [sound]}),
    ]


def answered(model: LoadedModel, task: Task) -> list[str]:
    """The lines about a task: question and greedy answer, and for a wrong one what is right."""
    # a text is a raw prompt that the model continues; everything else is a turn of a conversation
    prompt: Any = task.asked if task.name == "text" else [{"role": "user", "content": task.asked}]
    media: dict[str, Any] = dict(task.media)
    found = show_all(model.stream_generate(prompt, LONGEST_ANSWER, temperature=0.0, **media), None)
    shown = f"{task.asked}{escaped(found.text)}" if task.name == "text" else escaped(found.text)
    asked = next((str(files[0]) for files in task.media.values()), task.asked)
    lines = [f"{task.name:9} {asked}", f"answer    {shown}", ""]
    if task.truth is not None:
        right = "right" if found.text.strip() == task.truth else f"wrong: it is {task.truth}"
        lines[1] += f"   ({right})"
    return lines


def speed(model: LoadedModel, tokens: int) -> str:
    """The line about tokens per second of a text, measured after everything is compiled."""
    options: dict[str, Any] = {"temperature": 0.0, "stop_ids": ()}
    stats = show_all(model.stream_generate(BEGINNING, tokens, **options), None).stats
    assert stats is not None
    values = stats.as_dict()
    return f"speed     {values['generated_tokens']} tokens at {values['generation_tps']:.1f} tokens/s"


def about(model: LoadedModel, folder: Path) -> list[str]:
    """The lines about the model."""
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    parameters = sum(int(t.numel()) for t in model.named_tensors().values())
    return [
        f"model     {model!r}",
        f"          {human_count(parameters)} parameters, {human_bytes(nbytes)}, loaded in {model.load_seconds:.2f} s",
    ]


def on_the_path() -> list[str]:
    """How to put ``gemma4`` on the PATH, where it is not."""
    activate = Path(sys.prefix) / "bin" / "activate"
    if shutil.which("gemma4") is not None or not activate.is_file():
        return []
    return ["Put gemma4 on the PATH of this shell:", f"  source {shlex.quote(os.path.relpath(activate))}", ""]


def show(
    packaged: Path, options: dict[str, Any], tokens: int, seed: int | None, keep: Path | None, overwrite: bool = False
) -> list[str]:
    """Ask the trained model each question; yields lines. The picture and the sound are kept for the user to open."""
    from gemma4_core import loading

    folder = copy_demo(packaged, keep, overwrite) if keep is not None else Path(tempfile.mkdtemp(prefix="gemma4-demo-"))
    shown = tasks(folder, seed)
    model = loading.load_pretrained(packaged, **options)
    results = [line for task in shown for line in answered(model, task)]
    picture, name = shlex.quote(str(folder / PICTURE)), "demo" if keep is None else shlex.quote(str(keep))
    return [
        GREETING, "", *about(model, packaged), "", *results, speed(model, tokens), "",
        *on_the_path(),
        "Ask it yourself:",
        f'  gemma4 generate -m {name} "What is 12 + 34?"',
        f'  gemma4 generate -m {name} "Describe <|image|>." --image {picture}',
        f"  gemma4 chat -m {name}",
        "",
    ]
