"""What evaluators ask of held-out texts: words hidden one at a time, and running text with every token predicted once.

A word counts where it begins with a letter, is known from the training documents and leaves some of its row in sight;
which ones are asked for is drawn with a fixed seed. Its row is a window of its document with the word in the middle,
padded where the document is short.
Shapes: W words, R rows, L tokens of a row, n of a document.  State: none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from multissl.contract.abilities import HiddenWords, Running
from multissl.contract.data import Views
from multissl.modalities.text.counts import Neighbors, characters, words_of
from multissl.modalities.text.files import Documents
from multissl.modalities.text.rows import Rows
from multissl.modalities.text.tokenizer import Tokens, Vocabulary
from multissl.modalities.views import pack_masks

ROWS = 256
"""Rows of a batch."""


def hidden_words(
    data: Documents, train: Documents, vocabulary: Vocabulary, length: int, count: int
) -> HiddenWords:
    """Hide `count` words of held-out documents (0: all), one in each row, and say what count models pay for each.

    Returns views of rows of `length` tokens, and nats [W] by count model. `counts`, fitted to the documents `train`,
    knows the words on both sides, `unigram` none; both know the number of pieces, as the masks tell it.
    Raises a ValueError where no word of `data` is known from `train`.
    """
    known: dict[bytes, int] = {}
    model = Neighbors(words_of(spelled(train), known, True))
    words = words_of(spelled(data), known, False)
    heads = np.flatnonzero(data.starts)
    names = {number: word for word, number in known.items()}
    proper = {0: False}
    for number in np.unique(words.word[words.word > 0]).tolist():
        spelling = "".join(vocabulary.pieces(np.frombuffer(names[number], np.int32).tolist()))
        proper[number] = spelling[:1] == " " and spelling[1:2].isalpha()
    able = np.array([proper[number] for number in words.word.tolist()]) & (words.pieces < length)
    able = np.flatnonzero(able)
    if not len(able):
        raise ValueError("the held-out documents hold no word that the training documents hold")
    chosen = able[_drawn(len(able), count)]
    asked = words.where(chosen)
    paid = {"counts": model.nats(asked), "unigram": -np.log(model.terms(asked)[0][:, -1])}
    ends = np.append(data.ends, 0)  # the document before the first ends at 0
    views = []
    for first in range(0, len(chosen), ROWS):
        some = chosen[first : first + ROWS]
        rows = Rows(1, len(some), length, vocabulary.pad)
        hidden = np.zeros((len(some), length), dtype=bool)
        for row, word in enumerate(some.tolist()):
            document, size = int(words.document[word]), int(words.pieces[word])
            low, high = int(ends[document - 1]), int(ends[document])
            at = int(heads[word]) - low
            start = min(max(at - (length - size) // 2, 0), max(high - low - length, 0))
            rows.put(0, row, data.tokens(document), start, min(length, high - low - start))
            hidden[row, at - start : at - start + size] = True
        views.append(_views(rows, hidden, vocabulary.mask))
    return HiddenWords(views, paid)


def _views(rows: Rows, hidden: np.ndarray, mask: int) -> Views:
    whole = torch.from_numpy(rows.ids[0].astype(np.int64))  # [R, L]
    under = torch.from_numpy(hidden)
    return Views(
        x=whole.masked_fill(under, mask), stream="text", role="global", masks=(pack_masks(under),), target=whole,
        valid=torch.from_numpy(rows.valid[0]),
    )  # fmt: skip


def running(
    data: Documents, texts: list[str], train: list[str], vocabulary: Vocabulary, length: int, count: int
) -> Running:
    """Lay out `count` held-out documents (0: all), drawn with a fixed seed, as overlapping rows of `length` tokens.

    `texts` are the documents `data` as the tokenizer reads them, `train` those that the count model is fitted to.
    """
    chosen = _drawn(len(data.ends), count).tolist()
    windows = []  # document, first token, tokens, and how many of them an earlier window covered
    for document in chosen:
        size = len(data.tokens(document).ids)
        starts = [*range(0, max(size - length, 0), max(length // 2, 1)), max(size - length, 0)]
        covered = 1
        for start in dict.fromkeys(starts):
            width = min(length, size - start)
            windows.append((document, start, width, covered - start))
            covered = start + width
    views, new = [], []
    for first in range(0, len(windows), ROWS):
        some = windows[first : first + ROWS]
        rows = Rows(1, len(some), length, vocabulary.pad)
        fresh = torch.zeros(len(some), length, dtype=torch.bool)
        for row, (document, start, width, old) in enumerate(some):
            rows.put(0, row, data.tokens(document), start, width)
            fresh[row, old:width] = True
        x, valid = torch.from_numpy(rows.ids[0].astype(np.int64)), torch.from_numpy(rows.valid[0])
        views.append(Views(x=x, stream="text", role="global", valid=valid))
        new.append(fresh[:, 1:])
    baseline = characters(train, [texts[i] for i in chosen])
    symbols = vocabulary.size
    return Running(views, new, len(chosen), symbols, int(data.characters[chosen].sum()), baseline)


def _drawn(have: int, count: int) -> np.ndarray:
    """`count` places (0: all) in order, the same every time."""
    return np.sort(np.random.default_rng(0).permutation(have)[: count or have])


def spelled(data: Documents) -> Iterator[list[bytes]]:
    """The words of every readable document, each as the bytes of its ids."""
    for number in range(len(data.ends)):
        tokens: Tokens = data.tokens(number)
        raw, width = tokens.ids.tobytes(), tokens.ids.itemsize
        cuts = [*np.flatnonzero(tokens.starts).tolist(), len(tokens.ids)]
        yield [raw[width * a : width * b] for a, b in itertools.pairwise(cuts)]
