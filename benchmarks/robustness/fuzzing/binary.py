"""Mutations of binary files: plain bytes, and the chunks of PNG, RIFF (WAV, WebP), JPEG and safetensors files."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, (1 << 24) - 1, (1 << 31) - 1,
         1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
SIZES = (9, 255, 4096, 8192, 13_370, 16_384, 30_000, 65_535, 89_478_485, 178_000_000, 178_956_970)
"""Sides of pictures that a limit on pixels alone may not catch."""
RATES = (1, 7, 100, 8000, 11_025, 44_101, 192_000, 655_350, 767_999, 768_000, 2_000_003)
"""Samples per second: common, odd, and coprime to others."""
PNG_MARK = b"\x89PNG\r\n\x1a\n"


LARGEST = 64 << 20
"""Maximum bytes of repeated parts; more would fill the memory before anything is read."""


def repeated(data: bytes, times: int) -> bytes:
    """Data repeated several times, as often as fits."""
    return data * max(1, min(times, LARGEST // max(len(data), 1)))


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or splice, or write a boundary number somewhere."""
    if not data:
        return rng.randbytes(rng.choice((1, 8, 64)))
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    if rng.random() < 0.4:
        # headers are where structure is
        at = rng.randrange(min(len(changed), 64))
    length = min(rng.choice((1, 1, 2, 4, 16, 64, 1024)), len(changed) - at)
    match rng.randrange(8):
        case 0:
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 1:
            changed[at] = rng.randrange(256)
        case 2:
            del changed[at : at + length]
        case 3:
            changed[at:at] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
        case 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 100))
        case 5:
            del changed[at:]
        case 6:
            source = rng.randrange(len(changed))
            changed[at : at + length] = changed[source : source + length]
        case _:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(EDGES) & ((1 << 8 * size) - 1)
            changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(changed)


def mutate_media(rng: random.Random, data: bytes) -> bytes:
    """Mutate a picture or a sound along its own structure, sometimes as bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    if data[:8] == PNG_MARK:
        return _mutate_png(rng, data)
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _mutate_riff(rng, data)
    if data[:2] == b"\xff\xd8":
        return _mutate_jpeg(rng, data)
    if data[:3] == b"GIF" and rng.random() < 0.2:
        # the first frame many times, on a large screen
        first, *_, end = [at - 4 for at in (_all(data, b"\x21\xf9", 4) or [8, 8])] + [len(data) - 1]
        screen = struct.pack("<HH", *rng.choices((32, 4096, 8192, 65_535), k=2))
        return data[:6] + screen + data[10:first] + repeated(data[first:end], rng.choice((1, 20, 1000))) + b";"
    if data[:3] == b"GIF" and rng.random() < 0.5:
        return _with_number(rng, data, rng.choice((6, 8, 10, *_all(data, b"\x2c", 4))), 2, "little")
    return mutate_bytes(rng, data)


def _all(data: bytes, mark: bytes, after: int) -> list[int]:
    """Offsets ``after`` bytes after each occurrence of a mark, the first fifty."""
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 50:
        found.append(at + after)
        at = data.find(mark, at + 1)
    return found


def _with_number(rng: random.Random, data: bytes, at: int, size: int, order: str) -> bytes:
    changed = bytearray(data)
    number = rng.choice((*EDGES, rng.getrandbits(8 * size))) & ((1 << 8 * size) - 1)
    changed[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(changed)


def _arranged(rng: random.Random, parts: list[bytes], change: Callable[[bytes], bytes]) -> list[bytes]:
    """Parts of a file with one dropped, repeated, moved or changed."""
    at = rng.randrange(len(parts))
    match rng.randrange(6):
        case 0:
            return parts[:at] + parts[at + 1 :]
        case 1:
            return parts[:at] + [parts[at]] * rng.choice((2, 3, 300)) + parts[at + 1 :]
        case 2:
            return rng.sample(parts, len(parts))
        case _:
            return [*parts[:at], change(parts[at]), *parts[at + 1 :]]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@lru_cache
def _odd_chunks() -> tuple[bytes, ...]:
    """Chunks that a picture rarely has, or has only once."""
    return (
        b"zTXta\0\0" + zlib.compress(bytes(20_000_000)), b"iCCPa\0\0" + zlib.compress(bytes(3_000_000)),
        b"acTL\xff\xff\xff\xff\0\0\0\0", b"fcTL" + bytes(26), b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09",
        b"tRNS" + bytes(300), b"PLTE" + bytes(769), b"tEXta\0" + b"b" * 100_000, b"IEND", b"IDAT", b"gAMA\0\0\0\0",
    )


def _mutate_png(rng: random.Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length

    def change(chunk: bytes) -> bytes:
        kind, body = chunk[:4], chunk[4:]
        if kind == b"IHDR" and len(body) == 13 and rng.random() < 0.3:
            return kind + struct.pack(">II", *rng.choices((1, *SIZES), k=2)) + body[8:]
        if kind == b"IHDR" and len(body) == 13:
            if rng.random() < 0.6:
                return kind + _with_number(rng, body, rng.choice((0, 4)), 4, "big")
            return kind + _with_number(rng, body, rng.randrange(8, 13), 1, "big")
        return kind + mutate_bytes(rng, body)

    chance = rng.random()
    if chance < 0.1:
        return _large_png(rng)
    if not chunks or chance < 0.25:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(_odd_chunks()))
    else:
        chunks = _arranged(rng, chunks, change)
    return PNG_MARK + b"".join(png_chunk(chunk[:4], chunk[4:]) for chunk in chunks)


@lru_cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def _large_png(rng: random.Random) -> bytes:
    """A valid picture with a small file and large content, whole or truncated."""
    width, height = rng.choices((1, 2, *SIZES), k=2)
    depth, colour = rng.choice(((1, 0), (8, 0), (8, 2), (16, 6), (8, 3), (1, 3)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.choice((0, 0, 1)))
    data = _zeros(rng.choice((1 << 10, 1 << 20, 1 << 25)))
    parts = [(b"IHDR", header), (b"PLTE", bytes(6)), (b"IDAT", data), (b"IEND", b"")]
    return PNG_MARK + b"".join(png_chunk(kind, body) for kind, body in parts if kind != b"PLTE" or colour == 3)


def _mutate_riff(rng: random.Random, data: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        length = struct.unpack("<I", data[at + 4 : at + 8])[0]
        chunks.append(data[at : at + 8 + length + length % 2])
        at += 8 + length + length % 2

    def change(chunk: bytes) -> bytes:
        if chunk[:4] == b"fmt " and rng.random() < 0.3:
            return chunk[:12] + struct.pack("<I", rng.choice(RATES)) + chunk[16:]
        if chunk[:4] == b"fmt ":
            offset, size = rng.choice(((8, 2), (10, 2), (12, 4), (16, 4), (20, 2), (22, 2)))
            return _with_number(rng, chunk, offset, size, "little")
        if rng.random() < 0.3:
            return _with_number(rng, chunk, 4, 4, "little")
        return chunk[:8] + mutate_bytes(rng, chunk[8:])

    extra = (b"LIST\x04\0\0\0INFO", b"fact\x04\0\0\0\xff\xff\xff\xff", b"data\xff\xff\xff\xff", b"JUNK\0\0\0\0",
             b"ds64" + bytes(32), b"ANIM\x06\0\0\0" + bytes(6), b"smpl\xff\xff\xff\x7f", b"cue \xff\xff\xff\xff")
    if not chunks or rng.random() < 0.15:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(extra))
    else:
        chunks = _arranged(rng, chunks, change)
    body = b"".join(chunks)
    size = rng.choice((len(body) + 4,) * 5 + (0, 0xFFFFFFFF))
    return data[:4] + struct.pack("<I", size) + data[8:12] + body


def _mutate_jpeg(rng: random.Random, data: bytes) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        segments.append(data[at : at + 2 + length])
        at += 2 + length

    def change(segment: bytes) -> bytes:
        if segment[1:2] in (b"\xc0", b"\xc2"):
            return _with_number(rng, segment, rng.choice((5, 7)), 2, "big")
        return segment[:2] + mutate_bytes(rng, segment[2:])

    if not segments:
        return mutate_bytes(rng, data)
    return data[:2] + b"".join(_arranged(rng, segments, change)) + data[at:]
