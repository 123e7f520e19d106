"""A copy of the packaged demo model, and a picture and a sound to show it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gemma4_core.checkpoint import atomic_folder
from gemma4_core.checkpoint.atomic import atomic_file
from gemma4_core.checkpoint.contents import foreign_files, is_checkpoint

if TYPE_CHECKING:
    import numpy as np

PICTURE, SOUND = "picture.png", "sound.wav"
"""Files that the demo writes beside the model."""
SIDE = 448
"""Pixels of a picture's sides."""


def copy_demo(packaged: Path, folder: Path, overwrite: bool = False) -> Path:
    """Copy the model to a folder. ``overwrite`` replaces a checkpoint there, with the files of an earlier demo.

    Raises CheckpointError where the folder cannot be written, or holds anything else.
    """

    def replaceable(there: Path) -> bool:
        return is_checkpoint(there) and not foreign_files(there, (PICTURE, SOUND))

    with atomic_folder(folder, replaceable, overwrite) as temporary:
        for path in packaged.iterdir():
            if path.is_file():
                shutil.copyfile(path, temporary / path.name)
    return folder


def draw_picture(path: Path, rng: np.random.Generator) -> tuple[Path, str]:
    """Write a random picture as PNG; returns path and description. Raises CheckpointError where that fails."""
    from gemma4_plugins.commands.demo.pictures import draw, random_scene

    scene, data = random_scene(rng), io.BytesIO()
    draw(scene, rng, SIDE, SIDE).save(data, "PNG")
    with atomic_file(path) as file:
        file.write(data.getvalue())
    return path, str(scene)


def record_sound(path: Path, rng: np.random.Generator) -> tuple[Path, str]:
    """Write a random dialled number as WAV; returns path and keys. Raises CheckpointError where that fails."""
    from gemma4_plugins.commands.demo.sounds import dial, random_manner, random_number, wav_bytes

    number = random_number(rng)
    with atomic_file(path) as file:
        file.write(wav_bytes(dial(number, random_manner(rng, len(number)), rng)))
    return path, number
