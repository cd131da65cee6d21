"""How the bytes of a text are read: UTF-8, UTF-16 with or without its mark, or latin-1 where nothing else fits.

A file of UTF-8 with a few wrong bytes stays UTF-8, so that the lines that hold them can be named. Latin-1 (Windows'
1252) is believed only where no byte above 127 is part of UTF-8, all of them are letters or signs of its languages, and
they are rare among the others, as accents are.
State: none.
"""

from __future__ import annotations

import codecs

SURROGATES = ("\udc80", "\udcff")
"""The first and the last character that stands for a byte that is no UTF-8."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
ACCENTED = frozenset(
    b"\x80\x82\x84\x85\x8a\x8c\x8e\x91\x92\x93\x94\x95\x96\x97\x99\x9a\x9c\x9e\x9f"
) | frozenset(range(0xA0, 0xFE))
"""Bytes above 127 that texts in latin-1 hold; the last two letters are hardly ever written."""
RARE = 1 / 3
"""The most of the letters that are accented; Cyrillic or Greek in an encoding of their own has more."""


def encoding_of(content: bytes) -> str:
    """Return the name of the encoding of a text: utf-8, utf-8-sig, utf-16 or -32, utf-16-le, utf-16-be, or cp1252."""
    marked = next((name for mark, name in MARKS if content.startswith(mark)), "")
    if marked:
        return marked
    if wide := _unmarked_utf16(content[:4096]):
        return wide
    try:
        content.decode()
        return "utf-8"
    except UnicodeDecodeError:
        pass
    high = {byte for byte in range(128, 256) if byte in content}
    letters = sum(chr(byte).isalpha() for byte in content[: 1 << 20])
    if not content.decode(errors="ignore").isascii() or not ACCENTED.issuperset(high):
        return "utf-8"
    rare = sum(byte > 127 for byte in content[: 1 << 20]) <= RARE * max(letters, 1)
    return "cp1252" if rare else "utf-8"


def decode_text(content: bytes) -> str:
    """Return a text; bytes that are no UTF-8 become surrogates, which no text can hold."""
    encoding = encoding_of(content)
    return content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "replace")


def is_broken(text: str) -> bool:
    """Return whether a text holds what stands for a byte that is no UTF-8."""
    return not text.isascii() and any(SURROGATES[0] <= character <= SURROGATES[1] for character in text)


def _unmarked_utf16(head: bytes) -> str:
    """Return the encoding of a text whose every second byte is 0, as of western texts in UTF-16; "" for others."""
    pairs = len(head) // 2
    if pairs < 2:
        return ""
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if odd > 0.7 * pairs and even < 0.05 * pairs:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * pairs and odd < 0.05 * pairs else ""
