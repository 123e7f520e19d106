"""From sentences, sums, pictures and sounds to the arrays of one training batch, all of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from demo_model.nameless import made_nameless
from demo_model.questions import PICTURE_QUESTIONS, SOUND_QUESTIONS
from demo_model.texts import Said, pick, random_sentence, random_sum, said
from gemma4_core import GemmaTrainingBatch
from gemma4_core.training.batch import IGNORED
from gemma4_plugins.commands.demo.pictures import (
    COLOURS,
    EVERYTHING,
    SHAPES,
    SIZES,
    Choices,
    draw,
    random_look,
    random_scene,
)
from gemma4_plugins.commands.demo.sounds import KEYS, LONGEST, SHORTEST, dial, random_manner, random_number
from gemma4_plugins.modalities.audio.features import MelSettings, log_mel, token_count
from gemma4_plugins.modalities.vision.decode import open_picture
from gemma4_plugins.modalities.vision.preprocess import LEVELS, Grid, cut, soft_tokens

FRAMES = 256
"""Of a clip, padding included: 64 soft tokens."""
LEAST_KEYS = 3
"""Training also hears numbers shorter than those that are scored."""
MISREAD = 0.25
"""Share of the words for size, colour and shape for which training puts another into what the model has said so far. It
learns what is in the picture then, and not which words it has never seen beside each other."""


@dataclass(frozen=True)
class Recipe:
    """How many rows of each kind a batch has, and how hard they are."""

    sentences: int = 24
    sums: int = 104
    pictures: int = 128
    sounds: int = 64
    width: int = 96
    """Tokens of a row."""
    digits: int = 3
    choices: Choices = EVERYTHING
    keys: str = KEYS
    shortest: int = SHORTEST
    longest: int = LONGEST

    @property
    def rows(self) -> int:
        return self.sentences + self.sums + self.pictures + self.sounds


@dataclass
class Rows:
    """A batch as it travels from the process that makes it: bytes and halves in place of floats."""

    ids: np.ndarray
    """int32 ``[B, T]``."""
    labels: np.ndarray
    """int32 ``[B, T]``."""
    segments: np.ndarray
    """int32 ``[B, T]``: the number of the text in its row."""
    kinds: list[str]
    """Of each row: ``sentence``, ``sum``, ``picture`` or ``sound``."""
    pixels: list[np.ndarray] = field(default_factory=list)
    """uint8 ``[patches, p * p * 3]`` each."""
    positions: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    """fp16 ``[frames, mel]`` each."""

    def batch(self, grid: Grid) -> GemmaTrainingBatch:
        """As the trainer takes it."""
        media: dict[str, np.ndarray] = {}
        if self.pixels:
            pixels = np.zeros((len(self.pixels), grid.max_patches, self.pixels[0].shape[1]), np.float32)
            places = np.full((len(self.pixels), grid.max_patches, 2), -1, np.int64)
            for index, (image, where) in enumerate(zip(self.pixels, self.positions, strict=True)):
                pixels[index, : len(image)], places[index, : len(where)] = LEVELS[image], where
            media |= {"pixel_values": pixels, "image_position_ids": places}
        if self.features:
            clips = np.zeros((len(self.features), FRAMES, self.features[0].shape[1]), np.float32)
            valid = np.zeros(clips.shape[:2], np.bool_)
            for index, clip in enumerate(self.features):
                clips[index, : len(clip)], valid[index, : len(clip)] = clip, True
            media |= {"input_features": clips, "input_features_mask": valid}
        return GemmaTrainingBatch(self.ids, self.labels, segments=self.segments, **media)


class Maker:
    """Makes batches with one tokenizer and recipe."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, grid: Grid) -> None:
        self.recipe, self.grid = recipe, grid
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.settings = MelSettings()
        groups = [[self.encode(f" {word}")[0] for word in words] for words in (SIZES, COLOURS, SHAPES)]
        self.alternatives = {number: group for group in groups for number in group}

    def turn(self, item: Said) -> tuple[list[int], list[int]]:
        """Ids and labels: of a conversation the answer and the end of its turn are learnt, of a text all."""
        if item.prompt is None:
            ids = self.encode(f"<bos>{item.answer}<eos>")
            return ids, [IGNORED, *ids[1:]]
        asked = self.encode(f"<bos><|turn>user\n{item.prompt}<turn|>\n<|turn>model\n")
        answered = self.encode(f"{item.answer}<turn|>")
        return asked + answered, [IGNORED] * len(asked) + answered

    def make(self, rng: np.random.Generator, scored: bool = False, new: bool = False) -> Rows:
        """A batch. With ``scored`` it has one text a row, sums that training leaves out and full-length numbers; with
        ``new`` pictures show a combination that training leaves out."""
        r = self.recipe
        rows = Rows(*(np.full((r.rows, r.width), fill, np.int32) for fill in (0, IGNORED, -1)), [])
        for _ in range(r.sentences):
            self._pack(rows, "sentence", lambda: random_sentence(rng), single=scored)
        for _ in range(r.sums):
            self._pack(rows, "sum", lambda: said(rng, random_sum(rng, scored, r.digits)), single=scored)
        for _ in range(r.pictures):
            self._picture(rows, rng, scored, new)
        for _ in range(r.sounds):
            self._sound(rows, rng, r.shortest if scored else min(LEAST_KEYS, r.shortest))
        return rows

    def _pack(self, rows: Rows, kind: str, item: Callable[[], Said], single: bool = False) -> None:
        """A row of as many texts as fit."""
        row, start, number = len(rows.kinds), 0, 0
        for ids, labels in self._turns(item):
            if start + len(ids) > self.recipe.width or (single and number):
                break
            self._put(rows, row, start, number, ids, labels)
            start, number = start + len(ids), number + 1
        rows.kinds.append(kind)

    def _turns(self, item: Callable[[], Said]) -> Iterator[tuple[list[int], list[int]]]:
        while True:
            yield self.turn(item())

    @staticmethod
    def _put(rows: Rows, row: int, start: int, number: int, ids: list[int], labels: list[int]) -> None:
        where = slice(start, start + len(ids))
        rows.ids[row, where], rows.labels[row, where], rows.segments[row, where] = ids, labels, number

    def _medium(self, rows: Rows, kind: str, question: str, answer: str) -> None:
        """A row with one medium, its soft tokens written out in the question."""
        ids, labels = self.turn(Said(question, answer))
        self._put(rows, len(rows.kinds), 0, 0, ids, labels)
        rows.kinds.append(kind)

    def _picture(self, rows: Rows, rng: np.random.Generator, scored: bool, new: bool) -> None:
        scene = random_scene(rng, new, self.recipe.choices)
        looks = [random_look(shape, rng) for shape in (scene.first, scene.second)]
        without: list[str | None] = [None, None]
        if not scored:
            for index, look in enumerate(looks):
                looks[index], without[index] = made_nameless(look, rng)
        width = int(rng.integers(128, 225))
        height = int(np.clip(width * rng.uniform(0.8, 1.25), 128, 224))
        with open_picture(draw(scene, rng, width, height, looks)) as picture:
            patches = cut(picture, self.grid)
        rows.pixels.append(patches.pixels)
        rows.positions.append(patches.positions())
        soft = "<|image>" + "<|image|>" * soft_tokens(patches, self.grid) + "<image|>"
        self._medium(rows, "picture", pick(rng, PICTURE_QUESTIONS).replace("<|image|>", soft), str(scene))
        if not scored:
            self._misread(rows, rng, without)

    def _misread(self, rows: Rows, rng: np.random.Generator, without: Sequence[str | None]) -> None:
        """Put other words of their kind for some of the newest row's answer into its ids, and for the trait that each
        shape has no word ``without``, which is not learnt."""
        newest = len(rows.kinds) - 1
        ids, labels = rows.ids[newest], rows.labels[newest]
        described = [place for place in np.flatnonzero(labels != IGNORED) if int(ids[place]) in self.alternatives]
        traits = [(shape, trait) for shape in range(2) for trait in ("size", "colour", "shape")]
        for place, (shape, trait) in zip(described, traits, strict=True):
            nameless = without[shape] == trait
            if nameless or rng.random() < MISREAD:
                group = self.alternatives[int(ids[place])]
                ids[place] = group[int(rng.integers(len(group)))]
            if nameless:
                labels[place] = IGNORED

    def _sound(self, rows: Rows, rng: np.random.Generator, shortest: int) -> None:
        number = random_number(rng, shortest, self.recipe.longest, self.recipe.keys)
        features, valid = log_mel(dial(number, random_manner(rng, len(number)), rng), self.settings)
        rows.features.append(features[valid].astype(np.float16))
        soft = "<|audio>" + "<|audio|>" * token_count(int(valid.sum())) + "<audio|>"
        self._medium(rows, "sound", pick(rng, SOUND_QUESTIONS).replace("<|audio|>", soft), number)
