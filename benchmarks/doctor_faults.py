"""Files of pictures and videos that are spoiled, or hold the same once more.

State: none.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

from PIL import Image

PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"


def spoiled(data: bytes, number: int) -> bytes:
    """Return the bytes of a file cut off at two thirds or in its head, all zeros, none, or a server's page instead."""
    forms = (data[: 2 * len(data) // 3], data[:40], bytes(len(data)), b"", PAGE)
    return forms[number % len(forms)]


def picture_of(data: bytes) -> Image.Image:
    """Return a decoded picture."""
    return Image.open(io.BytesIO(data))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def again(data: bytes, number: int) -> bytes:
    """Return a picture encoded as JPEG or WebP of lower quality, made a third smaller or half as large again."""
    picture = picture_of(data)
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGB")
    width, height = picture.size
    match number % 4:
        case 0:
            return encoded(picture, "jpeg", quality=60)
        case 1:
            return encoded(picture, "webp", quality=50)
        case 2:
            return encoded(picture.resize((2 * width // 3, 2 * height // 3)), "jpeg", quality=80)
        case _:
            return encoded(picture.resize((3 * width // 2, 3 * height // 2)), "png")


def filmed(data: bytes, rate: int, side: float) -> bytes:
    """Return a video encoded again, at a rate (0: its own) and a share of its sides."""
    import av

    made = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(made, "w", format="mp4") as target:
        old = source.streams.video[0]
        pace = Fraction(rate) if rate else old.average_rate or Fraction(25)
        stream: Any = target.add_stream("mpeg4", rate=pace)
        stream.width, stream.height = (
            int(side * old.codec_context.width) & ~1,
            int(side * old.codec_context.height) & ~1,
        )
        stream.bit_rate = 400_000
        for number, frame in enumerate(source.decode(old)):
            smaller = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
            smaller.pts, smaller.time_base = number, 1 / pace
            target.mux(stream.encode(smaller))
        target.mux(stream.encode(None))
    return made.getvalue()
