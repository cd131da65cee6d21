"""Pictures of text for the report: the words that a view shows, with those hidden from the encoder struck.

Shapes: R rows, L tokens.  State: none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Figure
from multissl.modalities.text.tokenizer import Vocabulary

WIDTH, MARGIN, LINE, SIZE = 900, 10, 20, 14
SAMPLES, LINES = 5, 4
INK, FAINT, STRUCK, SWAPPED = (20, 20, 20), (120, 120, 120), (206, 206, 206), (190, 80, 0)
CARD = (110, 200)
"""Height and width of a text as a small picture."""


class Word(NamedTuple):
    """A piece of text and how it is drawn."""

    text: str
    struck: bool = False
    instead: str = ""
    """What stands in its place, where something does."""


def text_panel(views: Sequence[Views], vocabulary: Vocabulary) -> list[Figure]:
    """One figure with the first samples, each as every view shows it."""
    if not views:
        return []
    rows: list[tuple[str, list[Word]]] = []
    for b in range(min(SAMPLES, views[0].batch)):
        for v in views:
            for number in range(v.num_views):
                rows.append((v.role if number == 0 else "", _words(v, number * v.batch + b, vocabulary)))
        rows.append(("", []))
    drawn = [_paragraph(words, WIDTH, LINES, name) for name, words in rows]
    said = (
        "Each block is one document of the training set, a paragraph for every view of it; ¶ ends a document."
    )
    if any(v.mask is not None for v in views):
        said += " Struck words are hidden from the encoder; an orange word is what it sees in place of the struck one."
    return [Figure("What the encoder is shown", np.concatenate(drawn), said)]


def cards(views: Views, vocabulary: Vocabulary) -> np.ndarray:
    """The beginning of every row on a card: uint8 [R, H, W, 3]."""
    height, width = CARD
    lines = (height - 2 * MARGIN) // LINE
    found = []
    for row in range(len(views.x)):
        card = np.full((height, width, 3), 255, np.uint8)
        drawn = _paragraph(_words(views, row, vocabulary, 64), width, lines)[:height]
        card[: len(drawn)] = drawn
        found.append(card)
    return np.stack(found)


def _words(views: Views, row: int, vocabulary: Vocabulary, limit: int = 0) -> list[Word]:
    """The tokens of a row as words to draw."""
    x = views.x[row].tolist()
    real = _list(views.valid, row, len(x), True)
    hidden = _list(None if views.mask is None else views.mask.hidden, row, len(x), False)
    whole = x
    if views.target is not None and views.target.shape == views.x.shape:
        whole = views.target[row].tolist()
    keep = [i for i in range(len(x)) if real[i]][: limit or None]
    original, seen = vocabulary.pieces([whole[i] for i in keep]), vocabulary.pieces([x[i] for i in keep])
    return [
        Word(original[n], hidden[i], seen[n].strip() if whole[i] != x[i] else "") for n, i in enumerate(keep)
    ]


def _list(given: Tensor | None, row: int, length: int, default: bool) -> list[bool]:
    return [default] * length if given is None else given[row].tolist()


def _paragraph(words: list[Word], width: int, lines: int, name: str = "") -> np.ndarray:
    """Words in lines of `width` pixels: uint8 [H, width, 3], at most `lines` of them."""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(SIZE)
    page = Image.new("RGB", (width, lines * LINE + MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    left = MARGIN
    if name:
        draw.text((left, 2), name, FAINT, font)
    left = x = MARGIN + (60 if width >= WIDTH else 0)
    line = 0
    for word in words:
        for text, struck, ink in ((word.text, word.struck, INK), (word.instead, False, SWAPPED)):
            if not text:
                continue
            text = re.sub(r"\s", " ", text)  # a line end has no width
            wide = draw.textlength(text, font)
            if x + wide > width - MARGIN:
                line, x, text = line + 1, left, text.lstrip()
                wide = draw.textlength(text, font)
            if line >= lines:
                return np.asarray(page)
            y = line * LINE + 2
            if struck:
                draw.rectangle((x, y, x + wide, y + LINE - 3), STRUCK)
            draw.text((x, y), text, FAINT if struck else ink, font)
            if struck:
                draw.line((x, y + LINE // 2, x + wide, y + LINE // 2), INK)
            x += wide
    return np.asarray(page)[: (line + 1) * LINE + MARGIN] if words else np.asarray(page)[:MARGIN]
