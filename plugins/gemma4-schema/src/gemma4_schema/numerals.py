"""Regular expressions for numbers between bounds, with a bounded number of digits.

A number without bounds has at most 18 digits before the point and 15 behind it, so that a model that writes digits
without end comes to one. Between bounds fewer digits follow the point, so that no rounding to a double crosses a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from gemma4_core import InputError
from gemma4_schema.nodes import Number

MOST_INTEGER, MOST_FRACTION = 18, 15
MOST_VALUES = 1000
"""Numbers that are written out one by one, where a step other than 1 asks for it."""


def numeral(number: Number, exponents: bool) -> list[str] | str:
    """The terminals, all of which a number must match; or a JSON schema for a number that llguidance spells itself.

    Args:
        number: bounds and step.
        exponents: whether a number without bounds may have an exponent.

    Raises:
        InputError: a step that cannot be kept.
    """
    if number.multiple is not None:
        return _stepped(number)
    if number.integer:
        return list(_integer(number))
    return list(_decimal(number, exponents))


def values(number: Number) -> list[str] | None:
    """The numbers themselves, written out, where there are few; None where they are many."""
    step = number.multiple if number.multiple is not None else Decimal(1) if number.integer else None
    if step is None or number.low is None or number.high is None:
        return None
    exact = Fraction(step)
    if number.integer and exact.denominator != 1:
        exact = Fraction(exact.numerator)
    first, last = -((-Fraction(number.low)) // exact), Fraction(number.high) // exact
    first += number.low_open and first * exact == Fraction(number.low)
    last -= number.high_open and last * exact == Fraction(number.high)
    if last - first >= MOST_VALUES:
        return None
    return [_written(i * exact) for i in range(int(first), int(last) + 1)]


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


def _stepped(number: Number) -> list[str] | str:
    step = Fraction(number.multiple or 1)
    if number.integer or step.denominator == 1:
        step = Fraction(step.numerator)
        whole = Number(True, number.low, number.high, number.low_open, number.high_open)
        grid = _residues(step, 0)
        if grid is not None:
            return [*_integer(whole), grid]
        low, high = whole_bounds(whole)
        low, high = max(low, -(10**MOST_INTEGER)), min(high, 10**MOST_INTEGER)
        return f'{{"type":"integer","minimum":{low},"maximum":{high},"multipleOf":{step.numerator}}}'
    places = max(-number.multiple.normalize().as_tuple().exponent, 0) if number.multiple else 0  # type: ignore[operator]
    grid = _residues(step, int(places))
    if grid is None:
        raise InputError(f"constraint: multipleOf {number.multiple} cannot be kept with these bounds; give "
                         "minimum and maximum that are closer, or a step such as 0.01, 0.05 or 0.5")
    free = Number(False, number.low, number.high, number.low_open, number.high_open)
    return [*_decimal(free, False), grid]


def _residues(step: Fraction, places: int) -> str | None:
    """An expression for the last digits of multiples of a step; None where they do not tell."""
    whole = int(step * 10**places)
    for digits in range(1, 7):
        if 10**digits % whole == 0 and 10**digits // whole <= MOST_VALUES:
            break
    else:
        return None
    ends = [f"{i:0{digits}d}" for i in range(0, 10**digits, whole)]
    if places:
        if digits > places:
            return None
        short = sorted({end.rstrip("0") for end in (f"{i:0{places}d}" for i in range(0, 10**places, whole))} - {""})
        return f"-?[0-9]+(\\.({'|'.join(short)})0{{0,3}})?" if short else "-?[0-9]+"
    small = [str(i) for i in range(0, 10 ** (digits - 1), whole)]
    return f"-?([0-9]*({'|'.join(ends)})|{'|'.join(small)})"


# ------------------------------------------------------------------------------------------------- whole numbers


def whole_bounds(number: Number) -> tuple[int, int]:
    """The smallest and the largest whole number; those of 18 digits where there is no bound."""
    largest = 10**MOST_INTEGER - 1
    low, high = -largest, largest
    if number.low is not None:
        bound = ceil(number.low)
        low = bound + (number.low_open and bound == number.low)
        high = max(high, low + largest)
    if number.high is not None:
        bound = floor(number.high)
        high = bound - (number.high_open and bound == number.high)
        low = min(low, high - largest) if number.low is None else low
    return low, high


def _integer(number: Number) -> Iterator[str]:
    if number.low is None and number.high is None:
        yield f"0|-?[1-9][0-9]{{0,{MOST_INTEGER - 1}}}"
        return
    low, high = whole_bounds(number)
    if low >= 0:
        yield _at_least(low)
        yield _at_most(high)
    elif high < 0:
        yield f"-({_at_least(-high)})"
        yield f"-({_at_most(-low)})"
    else:
        below = f"|-({_at_most(-low, 1)})"
        yield f"{_at_most(high)}{below}"


def _at_least(number: int) -> str:
    """Whole numbers from one on, not negative, without leading zeros, of a bounded length."""
    text = str(number)
    parts = [f"[1-9][0-9]{{{len(text)},{max(MOST_INTEGER - 1, len(text))}}}", text]
    for i, digit in enumerate(text):
        if digit < "9":
            parts.append(f"{text[:i]}[{int(digit) + 1}-9]{_digits(len(text) - i - 1)}")
    return "|".join(parts)


def _at_most(number: int, least: int = 0) -> str:
    """Whole numbers from 0 or 1 up to one."""
    text = str(number)
    parts = [text] if number >= least else []
    for i, digit in enumerate(text):
        first = 1 if i == 0 and (len(text) > 1 or least) else 0
        if int(digit) > first:
            parts.append(f"{text[:i]}[{first}-{int(digit) - 1}]{_digits(len(text) - i - 1)}")
    if len(text) > 1:
        parts.append(f"[1-9][0-9]{{0,{len(text) - 2}}}")
        parts += ["0"] if least == 0 else []
    return "|".join(parts)


def _digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""


# ------------------------------------------------------------------------------------------------- decimals


def _decimal(number: Number, exponents: bool) -> Iterator[str]:
    if number.low is None and number.high is None:
        exponent = "([eE][+-]?[0-9]{1,2})?" if exponents else ""
        yield f"-?(0|[1-9][0-9]{{0,{MOST_INTEGER - 1}}})(\\.[0-9]{{1,{MOST_FRACTION}}})?{exponent}"
        return
    sizes = [len(str(abs(int(bound)))) for bound in (number.low, number.high) if bound is not None]
    places = max(MOST_FRACTION - max(sizes) - 1, 1)
    unsigned = f"(0|[1-9][0-9]{{0,{MOST_INTEGER - 1}}})(\\.[0-9]{{1,{places}}})?"
    low, high = number.low, number.high
    if low is not None:
        if low >= 0:
            yield _bounded(low, number.low_open, True, unsigned, places, "")
        else:
            yield f"{unsigned}|{_bounded(-low, number.low_open, False, unsigned, places, '-')}"
    if high is not None:
        if high < 0:
            yield _bounded(-high, number.high_open, True, unsigned, places, "-")
        elif high == 0 and number.high_open:
            yield f"-({_from(Decimal(0), True, places)})"
        else:
            yield f"{_bounded(high, number.high_open, False, unsigned, places, '')}|-{unsigned}"


def _bounded(bound: Decimal, open: bool, least: bool, unsigned: str, places: int, sign: str) -> str:
    found = _from(bound, open, places) if least else _to(bound, open, places)
    return f"{sign}({found})"


def _split(bound: Decimal) -> tuple[int, str]:
    whole, _, fraction = f"{bound:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def _from(bound: Decimal, open: bool, places: int) -> str:
    """Decimals without a sign from a bound on."""
    whole, fraction = _split(bound)
    tail = f"(\\.[0-9]{{1,{places}}})?"
    parts = [f"({_at_least(whole + 1)}){tail}"]
    inside = [f"{fraction[:i]}[{int(digit) + 1}-9][0-9]{{0,{places}}}"
              for i, digit in enumerate(fraction) if digit < "9"]
    # equal as far as the bound goes, and something behind it
    inside.append(f"{fraction}[0-9]{{0,{places}}}[1-9]")
    if not open:
        inside.append(f"{fraction}0{{0,{places}}}" if fraction else f"0{{1,{places}}}")
        parts += [str(whole)] if not fraction else []
    parts.append(f"{whole}\\.({'|'.join(inside)})")
    return "|".join(parts)


def _to(bound: Decimal, open: bool, places: int) -> str:
    """Decimals without a sign up to a bound."""
    whole, fraction = _split(bound)
    tail = f"(\\.[0-9]{{1,{places}}})?"
    parts = [f"({_at_most(whole - 1)}){tail}"] if whole else []
    inside = [f"{fraction[:i]}[0-{int(digit) - 1}][0-9]{{0,{places}}}"
              for i, digit in enumerate(fraction) if digit > "0"]
    inside += [fraction[:i] for i in range(1, len(fraction))]
    if not open:
        inside.append(f"{fraction}0{{0,{places}}}" if fraction else f"0{{1,{places}}}")
    if fraction or not open:
        parts.append(str(whole))
    if inside:
        parts.append(f"{whole}\\.({'|'.join(inside)})")
    return "|".join(parts)
