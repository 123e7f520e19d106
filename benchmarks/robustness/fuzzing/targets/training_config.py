"""Config files of ``gemma4 train``: TOML, YAML and JSON, through a dry run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.binary import mutate_bytes
from fuzzing.samples import Sample, mutate_files
from fuzzing.targets._commands import Commands
from fuzzing.targets._shared import plain
from fuzzing.values import NUMBERS, SHAPES, STRINGS, mutate_json

SETTINGS = {"lr": 0.01, "epochs": 1, "batch-size": 2, "max-length": 32, "schedule": "cosine", "warmup": 0, "seed": 3,
            "trainable": ["*.mlp.*"], "optimizer": "adamw", "optimizer-option": ["beta1=0.8"], "mask-prompt": True,
            "clip": 1.0, "validation": 0.5, "keep-last": 2, "sample-prompt": ["One"], "context": 64, "dtype": "float32"}
YAML = ("[*a]", "&a [*a]", "&a [x, x]", "*nothing", "!!python/object:os.system x", "!!binary AAAA", "2026-01-01", "1_0",
        "!!set {a}",
        "{a: b}", "? a", "| text", "~", "yes", "0o17", "1:30", "<<: *a", "!!timestamp 2026", ".inf", ".nan",
        "'a", "- - - -", "{" * 200, "&a [1,1] \n" + "".join(f"x{n}: &b{n} [*a, *a]\n" for n in range(3)), "%TAG",
        "---", "!!float 'x'", "!!int 'x'", "\t", "&" + "a" * 9999 + " 1", "!!omap [a: 1]", "!<x> 1", "0x" + "f" * 5000)
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
TOML = ("1979-05-27T07:32:00Z", "inf", "nan", "0x" + "f" * 5000, "'''a", "{ a = 1 }", "[[1], [2]]", '"\\ud800"',
        "07:32:00", "[" * 900, "1__0", "true", '"""', "{a.b.c = 1}", "[{}]", "1e999", "9" * 5000, "'\x00'")
WORDS = (*SETTINGS, "data", "model", "output-dir", "resume", "dry-run", "config", "help", "steps", "lora", "lora-rank",
         "adapter", "raw", "pack", "overlong", "json", "eval-every", "save-every", "image", "device", "beam", "ple")


class Target:
    reads_anything = True

    def __init__(self) -> None:
        self.commands = Commands()

    def seeds(self) -> Sequence[Sample]:
        lines = [(key, plain(value).decode()) for key, value in SETTINGS.items()]
        toml = "".join(f"{key} = {text}\n" for key, text in lines)
        yaml = "".join(f"{key}: {text}\n" for key, text in lines)
        return [{"run.toml": toml.encode()}, {"run.yaml": yaml.encode()}, {"run.json": plain(SETTINGS)}]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        name, content = next(iter(sample.items()))
        chance = rng.random()
        if chance < 0.02 or isinstance(content, str):
            return {name: mutate_files(rng, {name: content}).get(name, b"")}
        if chance < 0.05:
            return {name: mutate_bytes(rng, content)}
        if name.endswith("json"):
            return {name: mutate_json(rng, content, WORDS)}
        lines = content.decode("utf-8", "surrogateescape").split("\n")
        at, mark = rng.randrange(len(lines)), " = " if name.endswith("toml") else ": "
        odd = rng.choice((*NUMBERS, *SHAPES[:8], *(TOML if name.endswith("toml") else YAML), *map(repr, STRINGS[:30])))
        match rng.randrange(6):
            case 0 | 1 | 2:
                lines[at] = lines[at].split(mark)[0] + mark + odd
            case 3:
                lines.insert(at, rng.choice(WORDS) + mark + odd)
            case 4:
                lines[at] = rng.choice((odd, "  " + lines[at], lines[at] * 2, ""))
            case _:
                lines.insert(at, ALIASES if name.endswith("yaml") and rng.random() < 0.2 else lines[0])
        return {name: "\n".join(lines).encode("utf-8", "surrogatepass")}

    def run(self, folder: Path) -> None:
        root = self.commands.root
        name = next((path.name for path in folder.iterdir()), "run.toml")
        self.commands.run(["train", "-m", str(root / "model"), "--data", str(root / "train.jsonl"), "--dry-run",
                           "--config", name])
