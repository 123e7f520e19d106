"""Command lines: options of every command with valid and invalid values."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzzing.samples import Sample
from fuzzing.targets._commands import Commands, passable
from fuzzing.targets._shared import plain
from fuzzing.values import NUMBERS, STRINGS

FILES = ("model", "towers", "bare", "a.png", "a.wav", "tools.json", "train.jsonl", "adapter", "missing", ".")
NAMES = ("auto", "cpu", "bf16", "int8", "huggingface", "raw", "sentencepiece", "text", "vision", "audio", "text,vision",
         "adamw", "sgd", "float32", "bfloat16", "truncate", "cosine", "e2b", "E2B", "google/gemma-4-E2B-it", "max",
         "momentum=0.9", "beta=3", "2,5,9", "2,,5", "0", "1", "0.5", "70", "-", "One two", "<|image|> what?", "*.mlp.*")
STDIN = (b"", b"One\n", b"\xff\xfe", b"\xef\xbb\xbfOne", b"/help\n/exit\n", b"One\n/stats\n/save x\n/clear\n/image a\n",
         b"\0\n", b"One" * 9999, b"/system \n/thinking maybe\n/nothing\n", b"\r\n", b"'''\nOne\n", b"One\n\x04")
BEGINNINGS = (
    ["generate", "-m", "@model", "--prompt", "One"],
    ["generate", "-m", "@towers", "--prompt", "One", "--image", "@a.png"],
    ["generate", "-m", "@bare", "--prompt-tokens", "2,5"], ["chat", "-m", "@model"],
    ["chat", "-m", "@towers", "--stats"],
    ["info", "-m", "@model"], ["info", "@towers", "--json"], ["plugins"], ["plugins", "--json"], ["--version"], [],
    ["quantize", "-m", "@model", "--out", "out"], ["download", "--sizes", "E2B", "--models-dir", "models"],
    ["train", "-m", "@model", "--data", "@train.jsonl", "--dry-run"], ["bench", "-m", "@model"],
    ["perplexity", "-m", "@model", "--text", "One two three"], ["demo"], ["generate", "--help"],
    ["train", "-m", "@towers", "--data", "@train.jsonl", "--lora", "--dry-run"],
    ["fuse", "-m", "@model", "--adapter", "@adapter", "--out", "out"],
    ["generate", "-m", "@model", "One two"], ["generate", "-m", "@towers", "--image", "@a.png", "What is this?"],
    ["models"], ["models", "--json"], ["models", "show", "@model"], ["models", "rm", "e2b", "--yes"],
)  # fmt: skip


class Target:
    reads_anything = True

    def __init__(self) -> None:
        self.commands = Commands()
        self.options = {args[0]: _options(args[0]) for args in BEGINNINGS if args and not args[0].startswith("-")}

    def seeds(self) -> Sequence[Sample]:
        return [{"line.json": plain({"args": args, "stdin": 0, "env": {}})} for args in BEGINNINGS]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        line: dict[str, Any] = json.loads(sample["line.json"])
        args: list[str] = line["args"]
        at = rng.randrange(len(args) + 1)
        options = self.options.get(args[0] if args else "", ["--help"])
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                option = rng.choice(options)
                args[at:at] = rng.choice(([option], [option, value(rng)], [option, value(rng)],
                                          [f"{option}={value(rng)}"], [option, value(rng), value(rng)]))
            case 4 if args:
                args[rng.randrange(len(args))] = value(rng)
            case 5 if args:
                del args[rng.randrange(len(args))]
            case 6:
                args.insert(at, value(rng))
            case 7:
                line["stdin"] = rng.randrange(len(STDIN))
            case 8:
                names = ("DEVICE", "MODEL_DIR", "CONTEXT", "DEBUG", "TEMPERATURE", "DISABLE_PLUGINS", "FORMAT", "SEED")
                name = rng.choice([f"GEMMA4_{name}" for name in names if name != "DEBUG"] + ["COLUMNS", "NO_COLOR"])
                line["env"][name] = value(rng)
            case _:
                args[at:at] = args[: rng.randrange(len(args) + 1)]
        return {"line.json": plain(line)}

    def run(self, folder: Path) -> None:
        line = json.loads((folder / "line.json").read_bytes())
        args = [str(self.commands.root / arg[1:]) if arg.startswith("@") else passable(arg) for arg in line["args"]]
        env = {name: passable(text) for name, text in line["env"].items()}
        self.commands.run(args, STDIN[line["stdin"]], env)


def value(rng: random.Random) -> str:
    """Values that may follow an option."""
    chance = rng.random()
    if chance < 0.25:
        return "@" + rng.choice(FILES)
    if chance < 0.5:
        return rng.choice(NAMES)
    return rng.choice(NUMBERS if chance < 0.7 else STRINGS)


def _options(name: str) -> list[str]:
    """The options of a command, including those of plugins."""
    import click

    from gemma4_core.cli import cli

    context = click.Context(cli, info_name="gemma4")
    command = cli.get_command(context, name)
    assert command is not None
    params = command.get_params(click.Context(command, context, info_name=name))
    flags = [flag for param in params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("-")]
    # these would read what a user has at home
    return [flag for flag in flags if flag not in ("--history",)]
