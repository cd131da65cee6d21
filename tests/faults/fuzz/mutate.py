"""Damages bytes in the ways in which files are damaged, and in those that parsers stumble over."""

from __future__ import annotations

import random
import re

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)
WORDS = (
    b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'""',
    b"[" * 5000, b"\x00", b"\xff", b"\n", b"\r", b'"', b",", b":", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"!!python/object/apply:os.system ['x']", b"&a *a", b"../", b"1" * 5000,
)  # fmt: skip
VALUE = re.compile(rb'-?\d+\.?\d*|"[^"]*"|true|false|null')


def mutated(body: bytes, other: bytes, rng: random.Random, text: bool) -> bytes:
    """Return a body with one to sixteen changes; `other` is one of the same format, from which ends are taken."""
    data = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if data:
            _change(data, other, rng, text)
    return bytes(data)


def _change(data: bytearray, other: bytes, rng: random.Random, text: bool) -> None:
    kind, at = rng.random(), rng.randrange(len(data))
    if kind < 0.25:
        data[at] ^= 1 << rng.randrange(8)
    elif kind < 0.4:
        data[at] = rng.randrange(256)
    elif kind < 0.52:
        size = rng.choice([1, 2, 4, 8])
        number = rng.choice(NUMBERS) & (2 ** (8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
    elif kind < 0.62:
        del data[at:]
    elif kind < 0.7:
        del data[at : at + rng.choice([1, 2, 8, 64])]
    elif kind < 0.78:
        start = rng.randrange(len(data))
        data[at:at] = data[start : start + rng.choice([1, 4, 64, 512])]
    elif kind < 0.84:
        data[at:] = other[rng.randrange(len(other)) :]
    elif kind < 0.92:
        word = rng.choice(WORDS) if text or rng.random() < 0.2 else bytes(rng.choice([1, 8, 100]))
        data[at : at + rng.choice([0, 1, 3])] = word
    elif text and (spans := [m.span() for m in VALUE.finditer(bytes(data))]):
        start, end = rng.choice(spans)
        data[start:end] = rng.choice(WORDS)
    else:
        data[at : at + 4] = rng.randbytes(4)
