"""What ``gemma4 demo`` shows: a tiny trained model, pictures and sounds for it; and a random one like it."""

from __future__ import annotations

from gemma4_core.checkpoint.hub import packaged_demo
from gemma4_plugins.commands.demo.random_model import demo_config, write_demo_checkpoint
from gemma4_plugins.commands.demo.trained_model import PICTURE, SOUND, copy_demo, draw_picture, record_sound

__all__ = [
    "PICTURE",
    "SOUND",
    "copy_demo",
    "demo_config",
    "draw_picture",
    "packaged_demo",
    "record_sound",
    "write_demo_checkpoint",
]
