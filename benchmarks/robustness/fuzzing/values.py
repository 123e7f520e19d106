"""Mutations of JSON text that keep most of it valid: numbers keep their spelling, keys may be duplicated."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

from fuzzing.binary import mutate_bytes

NUMBERS = (
    "0", "-0", "1", "-1", "2", "3", "7", "8", "127", "128", "255", "256", "65535", "65536", "2147483647", "2147483648",
    "4294967295", "4294967296", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "-2147483649", "-9223372036854775809", "1" + "0" * 400, "-1" + "0" * 400, "9" * 5000,
    "0.5", "1.5", "-0.1", "1e-300", "5e-324", "1e16", "1e300", "1e999", "-1e999", "1E400", "NaN", "Infinity",
    "-Infinity", "1.0", "1e3", "0.1", "1e2147483648", "01", "+1", "0x10", "1_000",
)
STRINGS = (
    "", " ", "a", "\0", "a\0b", "\n", "\r\n", "\ud800", "\udc00\ud800", "\ufeff", "\u202e", "\u0130", "e\u0301", "😀",
    "中" * 50, "../outside.txt", "/etc/hostname", "..", ".", "-", "~", "file:///etc/hostname", "http://localhost:1/",
    "data:,", "data:image/png;base64,AAAA", "C:\\x", "\\\\host\\x", "a" * 300, "a" * 5000, "x" * 100_000, "%s%n",
    "{}", "{{ messages }}", "<bos>", "<|image|>", "<|turn>", "<turn|>", "<|channel>", "<tool_call|>", "NaN", "null",
    "true", "1", "0", "1e999", "[]", "float32", "bfloat16", "float16", "gemma4", "gelu_pytorch_tanh", "(a+)+$", "\\",
    "\x1b[31m", "\u2028", "__class__", "__proto__", "nan", "inf", "١", "aux",
)
SHAPES = (
    "{}", "[]", "[[]]", "[null]", "{\"\": null}", "[" * 200 + "]" * 200, "[" * 3000 + "]" * 3000,
    "[" * 100_000, "{\"a\":" * 2000 + "1" + "}" * 2000, "[" + "0," * 5000 + "0]", "[" + "[]," * 5000 + "[]]",
    "{" + ",".join(f'"k{i}":{i}' for i in range(2000)) + "}", '{"a":1,"a":2}', "[true,1,\"1\",null,{}]",
)
WORDS = ("null", "true", "false")


class Raw(str):
    """JSON text that is written as it is."""


class Pairs(list[tuple[str, Any]]):
    """An object as pairs, so that a key may occur twice."""


def parsed(text: bytes) -> Any:
    """The tree of JSON text, its numbers and words as ``Raw``. Raises ValueError, RecursionError."""
    return json.loads(text.decode("utf-8-sig"), object_pairs_hook=Pairs, parse_int=Raw, parse_float=Raw,
                      parse_constant=Raw)


def written(value: Any) -> str:
    """The text of a tree, or of plain JSON values."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def odd_value(rng: random.Random) -> Any:
    """A value that hardly fits anywhere."""
    kind = rng.random()
    if kind < 0.4:
        return Raw(rng.choice(NUMBERS))
    if kind < 0.7:
        return rng.choice(STRINGS)
    return Raw(rng.choice(WORDS if kind < 0.85 else SHAPES))


def mutate_json(rng: random.Random, text: bytes | str, words: Sequence[str] = ()) -> bytes:
    """Mutate JSON text; anything that is not JSON is mutated as bytes. ``words`` are meaningful strings and keys."""
    if isinstance(text, str):
        text = b"{}"
    if rng.random() < 0.03:
        return mutate_bytes(rng, text)
    try:
        tree = [parsed(text)]
        mutate_tree(rng, tree, words)
        return written(tree[0]).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return mutate_bytes(rng, text)


def mutate_tree(rng: random.Random, tree: list[Any], words: Sequence[str] = ()) -> None:
    """Mutate one place of a tree, whose root is the only item of ``tree``."""
    holder, index = tree, 0
    while True:
        value = holder[index][1] if isinstance(holder, Pairs) else holder[index]
        if not isinstance(value, list) or not value or rng.random() < 0.15:
            break
        holder, index = value, rng.randrange(len(value))
    if isinstance(value, list) and rng.random() < 0.7:
        _mutate_container(rng, value, words)
    elif isinstance(holder, Pairs) and rng.random() < 0.25:
        _mutate_key(rng, holder, index, words)
    else:
        _put(holder, index, _mutated(rng, value, words))


def _put(holder: Any, index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, Pairs) else value


def _mutated(rng: random.Random, value: Any, words: Sequence[str]) -> Any:
    """A replacement for a value, often of the same type."""
    chance = rng.random()
    if chance < 0.35:
        return odd_value(rng)
    if chance < 0.42:
        return [value]
    if chance < 0.46:
        return Pairs([(rng.choice(("a", "content", "value", "")), value)])
    if isinstance(value, Raw):
        return _number(rng, value)
    if isinstance(value, str):
        return _string(rng, value, words)
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, Raw("0"), "true"))
    return odd_value(rng)


def _number(rng: random.Random, value: Raw) -> Raw:
    try:
        number = int(value)
    except ValueError:
        return Raw(rng.choice((f"-{value}", f"{value}0", "0.0", "1e-30", "NaN", *NUMBERS)))
    if number.bit_length() > 1000:
        return Raw("7")
    changes = (number + 1, number - 1, -number, number * 2, number // 2, number * 1000, number + (1 << 32), number ^ 1)
    return Raw(rng.choice((str(rng.choice(changes)), f"{value}.0", f"{value}e0", rng.choice(NUMBERS))))


def _string(rng: random.Random, value: str, words: Sequence[str]) -> str:
    at = rng.randrange(len(value) + 1)
    odd = rng.choice(STRINGS)
    choices = (value[:at] + odd + value[at:], value[:at], value * 2, value.upper(), odd, value[::-1], value + " ",
               value * rng.choice((3, 50, 1000)) if len(value) < 200 else value, rng.choice(words or STRINGS))
    return rng.choice(choices)


def _mutate_key(rng: random.Random, pairs: Pairs, index: int, words: Sequence[str]) -> None:
    key, value = pairs[index]
    match rng.randrange(5):
        case 0:
            del pairs[index]
        case 1:
            pairs.append((key, odd_value(rng)))
        case 2:
            pairs.insert(rng.randrange(len(pairs)), (key, value))
        case 3:
            pairs[index] = (rng.choice((key + "s", key.upper(), key[:-1], "\0" + key, *STRINGS)), value)
        case _:
            pairs[index] = (rng.choice(words or ("_name", "type")), value)


def _mutate_container(rng: random.Random, items: list[Any], words: Sequence[str]) -> None:
    """Mutate a list or an object as a whole."""
    pairs = isinstance(items, Pairs)
    match rng.randrange(7):
        case 0:
            items.clear()
        case 1 if items:
            del items[rng.randrange(len(items))]
        case 2 if items:
            items.extend(copy.deepcopy(items[: rng.randrange(1, 20)]))
        case 3 if items and len(items) < 50:
            items[:] = items * rng.choice((2, 20, 200))
        case 4:
            rng.shuffle(items)
        case 5 if len(items) > 1:
            one, other = rng.randrange(len(items)), rng.randrange(len(items))
            first, second = (items[n][1] if pairs else items[n] for n in (one, other))
            _put(items, one, second)
            _put(items, other, copy.deepcopy(first))
        case _:
            value = odd_value(rng)
            key = rng.choice(words or STRINGS)
            items.insert(rng.randrange(len(items) + 1), (key, value) if pairs else value)
