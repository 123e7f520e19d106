"""How reports look: numbers without exponents, words wrapped on narrow terminals, colours where they are wanted."""

from __future__ import annotations

from typing import Any

import pytest
from cli_tools import gemma4

import gemma4_core.cli.output as output
import gemma4_core.cli.tables as tables
from gemma4_core.cli.answers import rate
from gemma4_core.formatting import three_digits


@pytest.mark.parametrize(("value", "shown"), [
    (0.0000123, "0.0000123"), (0.0123, "0.0123"), (1.5, "1.5"), (9.99, "9.99"), (12.34, "12.3"), (99.97, "100"),
    (1530.4, "1530"), (2e9, "2000000000"), (0, "0"), (-3.25, "-3.25"),
])
def test_numbers_have_no_exponent(value: float, shown: str) -> None:
    assert three_digits(value) == shown
    assert rate(1530.4) == " (1530 tok/s)"


@pytest.mark.parametrize("args", [["plugins"], ["info", "-m", "demo"], ["models"], ["doctor"]])
def test_reports_wrap_at_words_in_44_columns(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wide = gemma4(*args).out
    monkeypatch.setattr(tables, "terminal_width", lambda: 44)
    narrow = gemma4(*args).out
    words = [word for line in narrow.splitlines() for word in line.split()]
    for line in narrow.splitlines():
        # a word that is longer than a line, such as a path, stays whole
        assert len(line) <= 44 or len(line.split()[-1]) > 30, line
    if args[0] == "info":
        assert words == wide.split()
    elif args[0] != "doctor":  # tables are laid out anew; free memory changes
        assert set(words) <= set(wide.split())


def test_a_table_stays_a_table_where_there_is_room() -> None:
    rows = [("a", "1", "some words that go on and on"), ("bcd", "22", "few")]
    assert tables.columns(("N", "#", "TEXT"), rows, right=(1,)) == [
        "N     #  TEXT", "a     1  some words that go on and on", "bcd  22  few"
    ]


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.colour()


def test_defaults_and_aliases_read_as_they_are_typed() -> None:
    shown = gemma4("bench", "--help").out
    assert "[default: 512]" in shown and "(512)" not in shown
    for name in ("E2B", "e2b", "e2b-it", "google/gemma-4-E2B-it"):
        assert "E2B shape" in gemma4("info", "--size", name).out


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from gemma4_core.checkpoint.progress import progress
    from gemma4_core.console import console

    monkeypatch.setattr("gemma4_core.console.LOG_SECONDS", 0.0)
    with console.configured(log=True), progress(4, "reading", "lines") as bar:
        bar.update(1)
    with console.configured(quiet=True, log=True), progress(4, "reading", "lines") as bar:
        bar.update(1)
    with progress(4, "reading", "lines") as bar:
        bar.update(1)
    assert capsys.readouterr().err == "reading: 25 % of 4 lines\n"
