"""Text that the demo model learns: short sentences that hang together, sums, and a few words about itself."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

HELD_OUT_SHARE = 50
"""One sum in so many is kept for scoring."""
OPERATORS = {"+": "plus", "-": "minus"}


@dataclass(frozen=True)
class Said:
    """A turn of a conversation, or with ``prompt=None`` a plain text."""

    prompt: str | None
    answer: str


@dataclass(frozen=True)
class Being:
    """Somebody sentences are about."""

    name: str
    pronoun: str
    does: tuple[str, ...]
    likes: tuple[str, ...]


CAT = Being("cat", "It", ("sleeps", "plays", "waits", "hides"), ("the milk", "the fish", "the warm bed"))
DOG = Being("dog", "It", ("runs", "plays", "sleeps", "waits"), ("the bone", "the ball", "the long walk"))
BIRD = Being("bird", "It", ("sings", "rests", "waits", "hides"), ("the seeds", "the tall tree", "the morning"))
HORSE = Being("horse", "It", ("runs", "rests", "eats", "waits"), ("the grass", "the apple", "the open field"))
GIRL = Being("girl", "She", ("reads", "sings", "plays", "dances"), ("the book", "the song", "the blue kite"))
BOY = Being("boy", "He", ("reads", "runs", "plays", "draws"), ("the ball", "the red boat", "the story"))
TEACHER = Being("teacher", "She", ("reads", "writes", "works", "waits"), ("the school", "the book", "the quiet room"))
FARMER = Being("farmer", "He", ("works", "rests", "waits", "sings"), ("the field", "the rain", "the old horse"))
BAKER = Being("baker", "He", ("works", "sings", "rests", "waits"), ("the warm bread", "the sweet cake", "the morning"))
DOCTOR = Being("doctor", "She", ("works", "reads", "writes", "rests"), ("the tea", "the quiet room", "the garden"))
BEINGS = (CAT, DOG, BIRD, HORSE, GIRL, BOY, TEACHER, FARMER, BAKER, DOCTOR)
MOODS = {
    "happy": "sings a little song", "tired": "wants to sleep", "hungry": "looks for food", "thirsty": "drinks water",
    "cold": "sits by the fire", "brave": "is not afraid of the dark",
}
LOOKS = ("small", "old", "young", "kind", "quiet", "clever")
PLACES = ("in the garden", "under the tree", "by the river", "near the house", "in the field", "on the hill")
TIMES = ("In the morning", "In the evening", "Every day", "In summer", "In winter", "After lunch")
WEATHER = {"It is raining": "stays inside", "The sun is shining": "goes outside", "It is snowing": "plays in the snow",
           "The wind is cold": "closes the door"}
ASKED = ("Write a sentence about the {name}.", "Tell me about a {name}.", "Tell me about the {name}.")
ABOUT_ITSELF = (
    Said("Hello", "Hello! I am a tiny model. I can write sentences, add numbers, describe shapes and hear digits."),
    Said("Hi", "Hello! I am a tiny model. I can write sentences, add numbers, describe shapes and hear digits."),
    Said("Who are you?", "I am a tiny Gemma 4 with four million weights."),
    Said("What can you do?", "I can write sentences, add numbers, describe shapes and hear digits."),
    Said("Thank you", "You are welcome."),
    Said("Thanks", "You are welcome."),
)


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def story(rng: np.random.Generator, being: Being) -> str:
    """One or two sentences about somebody; the second takes up the first."""
    the, he = f"the {being.name}", being.pronoun
    kind = int(rng.integers(5))
    if kind == 0:
        return f"The {pick(rng, LOOKS)} {being.name} {pick(rng, being.does)} {pick(rng, PLACES)}."
    if kind == 1:
        mood = pick(rng, tuple(MOODS))
        return f"The {being.name} is {mood}. {he} {MOODS[mood]}."
    if kind == 2:
        return f"{pick(rng, TIMES)}, {the} {pick(rng, being.does)} {pick(rng, PLACES)}."
    if kind == 3:
        weather = pick(rng, tuple(WEATHER))
        return f"{weather}, so {the} {WEATHER[weather]}."
    then = f"{he} {pick(rng, being.does)} {pick(rng, PLACES)}"
    return f"The {pick(rng, LOOKS)} {being.name} likes {pick(rng, being.likes)}. {then}."


def random_sentence(rng: np.random.Generator) -> Said:
    """A story, told or asked for; now and then something about the model itself."""
    being = BEINGS[int(rng.integers(len(BEINGS)))]
    draw = rng.random()
    if draw < 0.06:
        return ABOUT_ITSELF[int(rng.integers(len(ABOUT_ITSELF)))]
    if draw < 0.45:
        return Said(pick(rng, ASKED).format(name=being.name), story(rng, being))
    return Said(None, story(rng, being))


@dataclass(frozen=True)
class Sum:
    """Two operands of up to three digits."""

    first: int
    operator: str
    second: int

    @property
    def result(self) -> int:
        return self.first + self.second if self.operator == "+" else self.first - self.second

    @property
    def held_out(self) -> bool:
        """Whether training leaves it out."""
        return zlib.crc32(str(self).encode()) % HELD_OUT_SHARE == 0

    def __str__(self) -> str:
        return f"{self.first} {self.operator} {self.second}"


def random_sum(rng: np.random.Generator, held_out: bool = False, digits: int = 3) -> Sum:
    """A sum with operands of up to ``digits`` digits, each length as likely as weighs; a third with many carries."""
    while True:
        first, second = (int(rng.integers(10 ** length(rng, digits))) for _ in range(2))
        operator = "+" if rng.random() < 0.5 else "-"
        if rng.random() < 0.33:
            second = hard(rng, first, digits, operator)
        found = Sum(first, operator, second)
        if found.held_out == held_out:
            return found


def length(rng: np.random.Generator, digits: int) -> int:
    """A number of digits: mostly the most."""
    return max(1, digits - int(rng.choice(3, p=(0.7, 0.2, 0.1))))


def hard(rng: np.random.Generator, first: int, digits: int, operator: str) -> int:
    """A second operand whose digits carry, or borrow, in most places, or nearly so."""
    places = [(first // 10**place) % 10 for place in range(digits)]
    chosen = [(9 - d if operator == "+" else d) + int(rng.integers(-1, 3)) for d in places]
    return sum(min(9, max(0, d)) * 10**place for place, d in enumerate(chosen))


def said(rng: np.random.Generator, item: Sum) -> Said:
    """A sum as somebody asks for it, or written out."""
    word = OPERATORS[item.operator]
    forms = (f"What is {item}?", f"{item} =", f"What is {item.first} {word} {item.second}?", f"{item}")
    kind = int(rng.integers(len(forms) + 2))
    if kind < len(forms):
        return Said(forms[kind], str(item.result))
    return Said(f"{item} =", str(item.result))


def corpus() -> list[str]:
    """Texts that hold every word and every form, for making the tokenizer."""
    rng = np.random.default_rng(0)
    found = [text for _ in range(4000) for item in [random_sentence(rng)] for text in (item.prompt or "", item.answer)]
    found += [text for item in ABOUT_ITSELF for text in (item.prompt or "", item.answer)] * 20
    return found + ["What is plus minus?"] * 50
