"""Count models of text, the classical baselines of what a language model predicts.

`Neighbors`: a word from the words to its left and right, relative frequencies after (left, right), left, right and of
the word alone, interpolated (Jelinek and Mercer 1980) over those contexts that were seen at all: weights by how often
(left, right) was seen, fitted by expectation maximization on every tenth document, which the counts leave out
meanwhile. It knows what its masks tell a masked language model, the number of pieces of the word, as a part of every
context; and it knows no words but those of the training documents, so what it is asked must be among them.
`characters`: a character from the five before it, interpolated by Witten and Bell (1991).
Shapes: W words, T terms of the interpolation.  State: counts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

SEEN = (1, 2, 4, 16)
"""Where the weights of the interpolation change, by how often the two neighbors were seen together."""
TERMS = 4
ORDER = 6
"""Characters of the longest run that is counted."""


class Words(NamedTuple):
    """Words in their places, int64 [W] each; numbers from 1, and 0 where a document or the knowledge of words ends."""

    word: np.ndarray
    left: np.ndarray
    right: np.ndarray
    pieces: np.ndarray
    document: np.ndarray

    def where(self, kept: np.ndarray) -> Words:
        """Some of them."""
        return Words(*(part[kept] for part in self))


def words_of(documents: Iterable[Sequence[bytes]], known: dict[bytes, int], learn: bool) -> Words:
    """All words of documents, by the numbers in `known`, where new ones are entered if they are to be learnt.

    A word is the bytes of the int32 ids of its pieces.
    """
    numbers, pieces, lengths = [], [], []
    for words in documents:
        lengths.append(len(words))
        for word in words:
            numbers.append(known.setdefault(word, len(known) + 1) if learn else known.get(word, 0))
            pieces.append(len(word) // 4)
    word, document = np.array(numbers, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths)
    same = document[1:] == document[:-1]
    left, right = np.zeros_like(word), np.zeros_like(word)
    left[1:], right[:-1] = word[:-1] * same, word[1:] * same
    return Words(word, left, right, np.array(pieces, dtype=np.int64), document)


class Table(NamedTuple):
    """How often each number was seen."""

    numbers: np.ndarray
    counts: np.ndarray

    def of(self, asked: np.ndarray) -> np.ndarray:
        """The counts of some numbers, int64 [W]."""
        at = np.minimum(np.searchsorted(self.numbers, asked), len(self.numbers) - 1)
        return np.where(self.numbers[at] == asked, self.counts[at], 0)


class Neighbors:
    """A word from its two neighbors."""

    def __init__(self, train: Words, rounds: int = 30) -> None:
        self.any = 1 + int(train.word.max())  # stands for "whatever word"
        held = train.document % 10 == 9
        self._count(train.where(~held))
        self.weights = np.full((1 + len(SEEN), TERMS), 1 / TERMS)
        terms, seen, level = self.terms(train.where(held))
        fit = terms[:, -1] > 0  # a word that the others do not hold says nothing of the weights
        terms, seen, level = terms[fit], seen[fit], level[fit]
        for _ in range(rounds):
            now = self.weights[level]
            shares = now * terms
            shares /= shares.sum(1, keepdims=True)
            shares += (
                now * ~seen / (now * seen).sum(1, keepdims=True)
            )  # what contexts not seen would have said
            for each in range(len(self.weights)):
                here = shares[level == each]
                self.weights[each] = (here.sum(0) + 0.5) / (here.sum() + 0.5 * TERMS)
        self._count(train)

    def _count(self, words: Words) -> None:
        self.contexts = [Table(*np.unique(c, return_counts=True)) for c in self._contexts(words)]
        self.joint = [
            Table(*np.unique(self._with_word(c, t, words.word), return_counts=True))
            for c, t in zip(self._contexts(words), self.contexts, strict=True)
        ]

    def _contexts(self, words: Words) -> list[np.ndarray]:
        """What is known of each word, widest first, as one number: (pieces, left, right) with `any` for unknown."""
        base, whatever = self.any + 1, np.full_like(words.word, self.any)
        pairs = [
            (words.left, words.right),
            (words.left, whatever),
            (whatever, words.right),
            (whatever, whatever),
        ]
        return [(words.pieces * base + left) * base + right for left, right in pairs]

    def _with_word(self, context: np.ndarray, table: Table, word: np.ndarray) -> np.ndarray:
        # contexts by their place in the table: their own numbers times that of the word would not fit
        return np.searchsorted(table.numbers, context) * (self.any + 1) + word

    def terms(self, words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Relative frequencies of words in their contexts [W, T], which contexts were seen, levels of weights [W]."""
        counts, frequencies = [], []
        for context, table, joint in zip(self._contexts(words), self.contexts, self.joint, strict=True):
            seen = table.of(context)
            counts.append(seen)
            found = joint.of(self._with_word(context, table, words.word)) * (seen > 0)
            frequencies.append(found / np.maximum(seen, 1))
        level = np.searchsorted(SEEN, counts[0], side="right")
        return np.stack(frequencies, 1), np.stack(counts, 1) > 0, level

    def nats(self, words: Words) -> np.ndarray:
        """What words cost, in nats, [W]; infinite for words that no training document holds."""
        terms, seen, level = self.terms(words)
        weights = self.weights[level] * seen
        with np.errstate(divide="ignore", invalid="ignore"):
            return -np.log((weights * terms).sum(1) / weights.sum(1))


def characters(train: Iterable[str], asked: Iterable[str], order: int = ORDER) -> float:
    """Bits per character of `asked` under the counts of runs of up to `order` characters of `train`."""
    runs: Counter[str] = Counter()
    for text in train:
        for length in range(1, order + 1):
            runs.update(text[i : i + length] for i in range(len(text) - length + 1))
    total: dict[str, int] = defaultdict(int)
    kinds: dict[str, int] = defaultdict(int)
    for run, count in runs.items():
        total[run[:-1]] += count
        kinds[run[:-1]] += 1
    bits, count = 0.0, 0
    for text in asked:
        for i in range(len(text)):
            chance = 1 / (kinds[""] + 1)  # one symbol more for all that were never seen
            for length in range(min(i, order - 1) + 1):
                before = text[i - length : i]
                if before not in kinds:
                    break
                chance = (runs[before + text[i]] + kinds[before] * chance) / (total[before] + kinds[before])
            bits -= math.log2(chance)
            count += 1
    return bits / count
