"""Stop strings across token boundaries."""

from __future__ import annotations

import random

import pytest

from gemma4_core.errors import InputError
from gemma4_core.text import StopStrings


def run(stops, pieces: list[str]) -> tuple[str, bool]:
    watch = StopStrings(stops)
    text = ""
    for piece in pieces:
        emit, stopped = watch.add(piece)
        text += emit
        if stopped:
            return text, True
    return text + watch.flush(), False


def reference(stops, text: str) -> tuple[str, bool]:
    """The stop string complete first; of several the one that began first. Tried at every character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ([], ["a", "b"], ("ab", False)),
        (["END"], ["abE", "N", "Dx"], ("ab", True)),
        (["END"], ["abE", "N", "x"], ("abENx", False)),
        (["END"], ["aEN"], ("aEN", False)),
        (["END"], ["END"], ("", True)),
        (["aab"], ["aa", "ab"], ("a", True)),
        (["\n\n"], ["a\n", "\nb"], ("a", True)),
        (["b", "abc"], ["a", "b", "c"], ("a", True)),
        (["abcd", "bc"], ["abcd"], ("a", True)),
        (["bc", "abc"], ["xabc"], ("x", True)),
        ("stop", ["s", "t", "o", "p"], ("", True)),
        (["é\U0001f999"], ["aé", "\U0001f999b"], ("a", True)),
    ],
)
def test_stops(stops, pieces, expected):
    assert run(stops, pieces) == expected


def test_text_is_passed_on_as_soon_as_it_cannot_stop():
    watch = StopStrings(["User:", "\nEnd"])
    assert [watch.add(text) for text in ("Hello ", "Us", "ers", "\nE", "N")] == [
        ("Hello ", False), ("", False), ("Users", False), ("", False), ("\nEN", False)]
    assert watch.flush() == "" and watch.flush() == ""


def test_nothing_follows_a_stop():
    watch = StopStrings(["."])
    assert watch.add("a.b") == ("a", True) and watch.add("c.d") == ("", True)
    assert watch.flush() == "" and watch.stopped


def test_random_texts_cut_anyhow_stop_at_the_same_place():
    draw = random.Random(13)
    for _ in range(2000):
        stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        text = "".join(draw.choice("abc") for _ in range(draw.randrange(20)))
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert run(stops, pieces) == reference(stops, text), (stops, pieces)


@pytest.mark.parametrize(("stops", "says"), [([""], "empty"), (["a", ""], "empty"), ([5], "must be text, not '5'")])
def test_wrong_stop_strings_are_refused(stops, says: str):
    with pytest.raises(InputError, match=says):
        StopStrings(stops)
