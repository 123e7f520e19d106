"""A fuzzing target with every fault that there is, for the tests of the fuzzer: a case's letters choose."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gemma4_core import InputError


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[dict[str, bytes]]:
        return [{"letters": b""}]

    def mutate(self, rng: random.Random, sample: dict[str, bytes]) -> dict[str, bytes]:
        """One letter more."""
        return {"letters": sample["letters"] + rng.choice(b"aaaaabbbbbccddeefghi").to_bytes(1, "big")}

    def run(self, folder: Path) -> None:
        letters = (folder / "letters").read_text()
        if "a" in letters and "b" in letters:
            raise ValueError("a and b")
        if "c" in letters:
            raise InputError("c" * 600)
        if "d" in letters:
            print("d", file=sys.stderr)
        if "e" in letters:
            open(Path(__file__).parents[1] / "Makefile").close()
        if "f" in letters:
            time.sleep(60)
        if "g" in letters:
            os.abort()
        if "i" in letters:
            raise InputError("i is refused")
        if "h" in letters:  # after the refusal: memory that a refused case took is a finding of its own
            del (bytearray(96 << 20))[:]
