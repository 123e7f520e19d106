"""The folder of a training run: a checkpoint for each saved step, of which the newest stay, and a log."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemma4_core.checkpoint.atomic import atomic_file, make_parents, write_error
from gemma4_core.checkpoint.contents import replaceable_save
from gemma4_core.checkpoint.hub import LAST
from gemma4_core.checkpoint.temporary import sweep, temporary_path
from gemma4_core.config.files import read_json
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown_path
from gemma4_core.training.checkpoint import RUN_FILE

SETTINGS, LOG, CURVE, SAMPLES = "settings.json", "log.csv", "loss.png", "samples.jsonl"
BEST = "best"
"""The link to the checkpoint with the lowest validation loss."""
STEP = re.compile(r"step-(\d{1,12})")


class RunFolder:
    """The folder of a run, with its files by name."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return shown_path(self.path)

    @property
    def settings(self) -> Path:
        """The run's settings."""
        return self.path / SETTINGS

    @property
    def log(self) -> Path:
        """A line for each step."""
        return self.path / LOG

    @property
    def curve(self) -> Path:
        """The loss curve."""
        return self.path / CURVE

    @property
    def samples(self) -> Path:
        """Generations on the way."""
        return self.path / SAMPLES

    def step(self, number: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.path / f"step-{number}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps that are saved, oldest first."""
        found = []
        with suppress(OSError):
            for path in self.path.iterdir():
                match = STEP.fullmatch(path.name)
                if match and (path / RUN_FILE).is_file():
                    found.append((int(match[1]), path))
        return sorted(found)

    def newest(self) -> Path:
        """The last checkpoint. Raises CheckpointError where there is none."""
        found = self.checkpoints()
        if not found:
            raise CheckpointError(f"{self}: holds no checkpoint to resume from; start without --resume")
        return found[-1][1]

    def start(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Make the folder and write the settings.

        Raises CheckpointError where it cannot be written, holds a run already, or holds other things.
        """
        if not resume and self.checkpoints():
            raise CheckpointError(f"{self}: holds a run already, up to {self.newest().name}; go on with --resume, or "
                                  f"give another folder")
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self}: is a file; give a folder to write to")
        if not resume and self.path.is_dir() and any(self.path.iterdir()) and not self.settings.is_file():
            raise CheckpointError(f"{self}: is not empty and holds no run; give another folder")
        try:
            make_parents(self.path)
        except OSError as fault:
            raise write_error(fault, str(self)) from fault
        if not resume:
            for path in (self.log, self.samples, self.curve):
                path.unlink(missing_ok=True)
            for link in (self.path / LAST, self.path / BEST):
                if link.is_symlink():
                    link.unlink(missing_ok=True)
        sweep(self.path)
        with atomic_file(self.settings, "w") as file:
            file.write(json.dumps(dict(settings), indent=2) + "\n")

    def saved(self, number: int, keep: int, best: int | None = None) -> None:
        """After a step was saved: ``mark`` and ``prune``."""
        self.mark(number, best)
        self.prune(keep, best)

    def mark(self, number: int, best: int | None = None) -> None:
        """Make ``last`` lead to the step that was saved, and ``best`` to that of the lowest validation loss, if it is
        there."""
        for name, step in ((LAST, number), (BEST, best)):
            if step is not None and self.step(step).is_dir():
                with suppress(OSError), temporary_path(self.path / name) as temporary:  # some systems have no links
                    os.symlink(self.step(step).name, temporary, target_is_directory=True)
                    os.replace(temporary, self.path / name)

    def prune(self, keep: int, best: int | None = None) -> None:
        """Remove older checkpoints but ``keep`` in all, and the best one. One with files of the user's beside its own
        stays."""
        for number, path in self.checkpoints()[:-keep]:
            with suppress(OSError):
                if number != best and replaceable_save(path):
                    shutil.rmtree(path, ignore_errors=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run; empty where there are none. Raises CheckpointError for a damaged file."""
    return read_json(path, error=CheckpointError) if path.exists() else {}
