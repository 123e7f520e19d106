"""What ``gemma4 demo`` shows: a tiny trained model, and pictures and sounds for it."""

from __future__ import annotations

from gemma4_core.checkpoint.hub import packaged_demo
from gemma4_plugins.commands.demo.trained_model import PICTURE, SOUND, copy_demo, draw_picture, record_sound

__all__ = [
    "PICTURE",
    "SOUND",
    "copy_demo",
    "draw_picture",
    "packaged_demo",
    "record_sound",
]
