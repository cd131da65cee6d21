"""The size that a picture's header says, read without decoding: what is too large is refused before it takes memory.

Formats that torchvision decodes: PNG (RFC 2083), JPEG (ITU T.81, B.2.2), GIF 89a, WebP (RFC 9649). Pillow says the
size of others.
"""

from __future__ import annotations

import io
import struct

from multissl.limits import PIXELS

ORIENTATION = 274
"""The tag of EXIF that says how a picture is turned."""
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
"""Markers of a JPEG that say its size."""
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers of a JPEG without a length."""


def check_pixels(data: bytes) -> None:
    """Raise a ValueError where the header of a PNG, JPEG, GIF or WebP says more pixels than the limit.

    A header that cannot be read is left to the decoder, which says what is wrong.
    """
    try:
        size = _size(data)
    except (struct.error, IndexError):
        return
    if size:
        width, height, pages = size
        check_size(width, height, pages)


def check_size(width: int, height: int, pages: int = 1) -> None:
    """Raise a ValueError where a picture has more pixels than the limit."""
    of_pages = f" and {pages:,} pages" if pages > 1 else ""
    PIXELS.check(width * height * pages, f"its header says {width:,} x {height:,}{of_pages}, which are")


def has_alpha(data: bytes) -> bool:
    """Return whether the header of a PNG or WebP says that parts of it are transparent."""
    if data.startswith(b"\x89PNG"):
        return len(data) > 25 and (data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")])
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) > 24:
        if data[12:16] == b"VP8X":
            return bool(data[20] & 0x10)
        return data[12:16] == b"VP8L" and bool(data[24] & 0x10)
    return False


def is_deep(head: bytes) -> bool:
    """Return whether a picture may have other than 8 bits, by its first bytes: no JPEG, GIF, WebP or BMP has."""
    if head.startswith(b"\x89PNG"):
        return len(head) > 24 and head[24] == 16
    return not head.startswith((b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM"))


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP, 1 where it says none."""
    if not any(mark in data for mark in (b"Exif\0\0", b"eXIf", b"EXIF", b"Raw profile type exif")):
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # what Pillow cannot read is turned by nothing
        return 1


def _size(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and number of pages; None for another format."""
    if data.startswith(b"\x89PNG"):
        return *struct.unpack_from(">II", data, 16), 1
    if data.startswith(b"GIF8"):
        return *struct.unpack_from("<HH", data, 6), _gif_pages(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xDA:  # broken, or the picture itself
            return None
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height, 1
        at += 2 if marker in ALONE else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _gif_pages(data: bytes) -> int:
    """Return how many pictures a GIF holds, all of which are decoded together."""
    at, pages = 13 + _colors(data[10]), 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x21:  # an extension
            at += 2
        elif data[at] == 0x2C:
            pages += 1
            at += 11 + _colors(data[at + 9])
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return max(pages, 1)


def _colors(flags: int) -> int:
    """Return the bytes of a color table that these flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_size(data: bytes) -> tuple[int, int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height, 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF, 1
    return None
