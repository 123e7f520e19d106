"""Mutations of safetensors files: the header's declarations, its length, and the data after it."""

from __future__ import annotations

import random
from typing import Any

from fuzzing.binary import EDGES, mutate_bytes
from fuzzing.values import Pairs, Raw, mutate_tree, odd_value, parsed, written

DTYPES = ("BOOL", "U8", "I8", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "I64", "F64", "F4", "bf16", "", "C64")


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header text and data."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def joined(header: bytes, body: bytes) -> bytes:
    """A file made of these parts."""
    return len(header).to_bytes(8, "little") + header + body


def mutate_tensors(rng: random.Random, data: bytes | str, words: tuple[str, ...] = ()) -> bytes:
    """Mutate a safetensors file."""
    if isinstance(data, str):
        return b""
    chance = rng.random()
    if chance < 0.08:
        return mutate_bytes(rng, data)
    header, body = split(data)
    if chance < 0.13:
        return rng.choice((*EDGES, len(header) + 1, len(header) - 1, len(data))).to_bytes(9, "little")[:8] + data[8:]
    if chance < 0.18:
        return joined(header, rng.choice((body[:-1], body + b"\0", b"", body * 2, mutate_bytes(rng, body))))
    try:
        tree = [parsed(header)]
        if isinstance(tree[0], Pairs) and tree[0] and rng.random() < 0.7:
            _mutate_entry(rng, tree[0], words)
        else:
            mutate_tree(rng, tree, words)
        return joined(written(tree[0]).encode("utf-8", "surrogatepass"), body)
    except (ValueError, RecursionError):
        return joined(mutate_bytes(rng, header), body)


def _mutate_entry(rng: random.Random, tree: Pairs, words: tuple[str, ...]) -> None:
    """Mutate one tensor's declaration so that it stays well-formed and only its meaning is wrong."""
    index = rng.randrange(len(tree))
    name, entry = tree[index]
    fields: dict[str, Any] = dict(entry) if isinstance(entry, Pairs) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    match rng.randrange(9):
        case 0:
            fields["dtype"] = rng.choice(DTYPES)
        case 1 if isinstance(shape, list):
            fields["shape"] = rng.choice(([*shape, Raw("1")], [Raw("1"), *shape], shape[::-1], shape[:-1], [],
                                          [Raw("0"), *shape], [Raw("1")] * 70))
        case 2 if isinstance(shape, list) and shape:
            fields["shape"] = [*shape[:-1], Raw(str(rng.choice(EDGES)))]
        case 3 if isinstance(offsets, list) and offsets:
            fields["data_offsets"] = rng.choice((offsets[::-1], offsets[:1], offsets * 2,
                                                 [offsets[0], Raw(str(rng.choice(EDGES)))]))
        case 4:
            tree.append((name, entry))
            return
        case 5:
            tree[index] = (rng.choice(words) if words else name + ".x", entry)
            return
        case 6:
            del tree[index]
            return
        case 7:
            tree.insert(0, ("__metadata__", odd_value(rng)))
            return
        case _:
            fields[rng.choice(("dtype", "shape", "data_offsets", "more"))] = odd_value(rng)
    tree[index] = (name, Pairs(fields.items()))
