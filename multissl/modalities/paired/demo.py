"""The demo pairs: the pictures of the image demo, each with a caption that says what was drawn.

A caption names the motif, how coarse it is, the color in front and the color behind, in one of five ways of putting
it; 2,940 different contents. Rotation, center, light, clutter and noise are left out. Pictures of equal content are
positives of each other, however they are put. In motifs whose front and back look alike (stripes, checks) the order of
the two colors cannot be seen, and colors are named before light and clutter change them, so no model gets all right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multissl.modalities.image.demo import CLASSES, drawings

HUES = ("red", "yellow", "green", "turquoise", "blue", "purple")
GRAY = 36
"""Difference of the strongest and the weakest color below which there is no hue."""
SIZES = ("coarse", "medium", "fine")
TEMPLATES = (
    "{size} {kind} in {front} on {back}",
    "a picture of {size} {kind}, {front} before {back}",
    "{front} {kind} on a {back} ground, {size}",
    "on {back}: {front} {kind}, {size}",
    "{kind}, {size}, painted {front} over {back}",
)


class Captioned(NamedTuple):
    """Pictures, captions, classes and contents of a split."""

    images: np.ndarray
    """uint8 [n, size, size, 3]"""
    texts: list[str]
    labels: np.ndarray
    """int64 [n]"""
    contents: np.ndarray
    """int64 [n]; equal where what captions tell is equal."""


def hue(color: np.ndarray) -> int:
    """The number of a hue, red 0 to purple 5, or 6 for none; color int32 [3]."""
    r, g, b = color.tolist()
    top, span = max(r, g, b), max(r, g, b) - min(r, g, b)
    if span < GRAY:
        return len(HUES)
    # sixths of the circle, doubled so that halves stay whole: red 0, green 4, blue 8
    around = 2 * (g - b) if top == r else 2 * (b - r) + 4 * span if top == g else 2 * (r - g) + 8 * span
    return (around + span) // (2 * span) % len(HUES)


def captioned(split: str, size: int = 32) -> Captioned:
    """The pairs of one split."""
    drawn = drawings(split, size)
    texts, contents = [], []
    for row, (label, colors, scale) in enumerate(zip(drawn.labels, drawn.colors, drawn.scales, strict=True)):
        front, back = hue(colors[0]), hue(colors[1])
        bright = bool(colors[0].sum() > colors[1].sum())
        coarse = min(max((int(scale) - 1200) // 600, 0), 2)
        contents.append((((int(label) * 2 + bright) * 7 + front) * 7 + back) * 3 + coarse)
        texts.append(
            TEMPLATES[row % len(TEMPLATES)].format(
                size=SIZES[coarse],
                kind=CLASSES[label],
                front=_name(front, bright),
                back=_name(back, not bright),
            )
        )
    return Captioned(drawn.images, texts, drawn.labels, np.array(contents, dtype=np.int64))


def _name(number: int, bright: bool) -> str:
    return f"{'light' if bright else 'dark'} {(*HUES, 'grey')[number]}"
