"""What is fuzzed. A target is a module of this package with a class ``Target``; its name is the module's."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fuzzing.samples import Sample

HERE = Path(__file__).parent


class Target(Protocol):
    """Something that reads bytes from outside."""

    reads_anything: bool
    """Whether a case may name files to read outside its folder, as a user does on the command line."""

    def seeds(self) -> Sequence[Sample]:
        """Valid samples, the same at each call."""

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        """Another sample with one more mutation; all randomness comes from ``rng``."""

    def run(self, folder: Path) -> None:
        """Read the case in a folder, which is also the working directory. Raises a Gemma4Error if it is refused, and
        ``Broken`` if a promise of ours is broken."""


class Broken(Exception):
    """A promise is broken: its short name, then what was seen."""

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))


def target_names() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def load_target(name: str) -> Target:
    """A target by name, or from a file."""
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(f"fuzzing.targets.{name}")
    made: Target = module.Target()
    return made
