"""What is asked about pictures and sounds, and how it is answered."""

from __future__ import annotations

import numpy as np

from gemma4_plugins.commands.demo.pictures import EVERYTHING, random_scene

PICTURE_QUESTIONS = (
    "Describe <|image|>.", "<|image|>Describe the picture.", "<|image|>What is in the picture?", "<|image|>",
    "Describe the picture. <|image|>",
)
SOUND_QUESTIONS = (
    "Transcribe <|audio|>.", "Transcribe the sound.<|audio|>", "<|audio|>Which keys are dialled?", "<|audio|>",
    "Write down the digits. <|audio|>",
)


def picture_answers(count: int = 4000) -> list[str]:
    """Descriptions, for making the tokenizer."""
    rng = np.random.default_rng(1)
    return [f"{random_scene(rng, False, EVERYTHING)}" for _ in range(count)]
