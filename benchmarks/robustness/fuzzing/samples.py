"""Samples: the files of one case, and mutations of files as files (absent, empty, links, pipes)."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PIPE = "\0pipe"
"""A value that stands for a named pipe."""
FOLDER = "\0folder"
"""A value that stands for an empty folder."""
Sample = Mapping[str, bytes | str]
"""Files by relative path: their bytes, or text for the target of a symbolic link (or PIPE, or FOLDER)."""
CANARY = b"CANARY-a-file-outside-the-case"
"""Content of the file ``../outside.txt`` beside each case's folder; it must never appear in what we write."""
LINKS = ("../outside.txt", "outside/../../outside.txt", "/etc/hostname", "config.json", ".", "..", "nowhere", "self")


@dataclass(frozen=True)
class Case:
    """A seed and the mutations that are applied to it: equal cases have equal files."""

    target: str
    seed: int
    mutations: tuple[int, ...]

    @staticmethod
    def draw(target: str, seeds: int, run_seed: int, number: int) -> Case:
        """Case ``number`` of a run; the cases do not depend on where the file of a target is."""
        rng = random.Random(f"{run_seed}:{Path(target).stem}:{number}")
        count = 1 + sum(rng.random() < 0.4 for _ in range(4))
        return Case(target, rng.randrange(seeds), tuple(rng.getrandbits(40) for _ in range(count)))

    def __str__(self) -> str:
        return f"{self.target}:{self.seed}:{','.join(f'{m:x}' for m in self.mutations)}"

    @staticmethod
    def parse(text: str) -> Case:
        """The case that ``str`` wrote."""
        target, seed, mutations = text.rsplit(":", 2)
        return Case(target, int(seed), tuple(int(m, 16) for m in mutations.split(",") if m))


def write_sample(sample: Sample, folder: Path) -> None:
    """Replace a folder's content with a sample."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sample.items():
        path = folder / name
        # a name may be below another that is now a file or a link
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == PIPE:
                os.mkfifo(path)
            elif content == FOLDER:
                path.mkdir()
            elif isinstance(content, str):
                os.symlink(content, path)
            elif path.resolve().is_relative_to(folder.resolve()):
                path.write_bytes(content)


def folder_sample(folder: Path) -> dict[str, bytes | str]:
    """The files of a folder as a sample."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def mutate_files(
    rng: random.Random, sample: Sample, names: tuple[str, ...] = (), pipes: bool = True
) -> dict[str, bytes | str]:
    """Mutate files as files; ``names`` are further names that a case may add. Without ``pipes`` no file becomes one."""
    changed = dict(sample)
    name = rng.choice(sorted(changed))
    other = rng.choice(sorted({*changed, *names}))
    match rng.randrange(9):
        case 0:
            del changed[name]
        case 1:
            changed[name] = b""
        case 2:
            changed[name] = PIPE if pipes else b""
        case 3:
            changed[name] = FOLDER
        case 4:
            changed[name] = rng.choice(LINKS)
        case 5:
            changed[other] = rng.choice(LINKS)
        case 6:
            changed[other] = changed[name]
        case 7:
            content = changed[name]
            changed[name] = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" ")) + (
                content if isinstance(content, bytes) else b"")
        case _:
            changed[name] = rng.randbytes(rng.choice((1, 7, 8, 9, 100, 4096)))
    return changed or {"empty": b""}
