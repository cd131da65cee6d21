"""The classical feature of texts that learning has to beat: counts of words and of pairs of neighbors, by rarity.

TF-IDF as scikit-learn's of word 1-2-grams with sublinear counts, smoothed document frequencies and unit rows, of the
n-grams that are in most training documents. A row is read as the encoder reads it: what does not fit into it is not
seen.
Shapes: R rows, L tokens of a row, F features.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views

WIDTH = 4096
"""Most n-grams that are counted."""
WORD = re.compile(r"\w+")


def grams(text: str) -> list[str]:
    """Return the words of a text, in small letters, and its pairs of neighboring words."""
    words = WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


class Tfidf:
    """TF-IDF of word 1-2-grams: a function of clean views."""

    def __init__(self, documents: Iterable[str], decode: Callable[[Sequence[int]], str]) -> None:
        """Count the n-grams of the training documents; `decode` writes a row's ids out."""
        seen: Counter[str] = Counter()
        total = 0
        for document in documents:
            seen.update([*dict.fromkeys(grams(document))])  # in order, so that ties are broken alike
            total += 1
        self.decode = decode
        kept = seen.most_common(WIDTH)
        self.place = {gram: i for i, (gram, _) in enumerate(kept)}
        self.rarity = torch.tensor([math.log((1 + total) / (1 + count)) + 1 for _, count in kept])  # [F]

    def __call__(self, views: Views) -> Tensor:
        """Return (1 + log count) times rarity by n-gram, each row of length 1: [R, F]."""
        real = torch.ones_like(views.x, dtype=torch.bool) if views.valid is None else views.valid
        found = torch.zeros(len(views.x), len(self.place))
        for row, (ids, valid) in enumerate(zip(views.x.cpu(), real.cpu(), strict=True)):
            for gram, count in Counter(grams(self.decode(ids[valid].tolist()))).items():
                if gram in self.place:
                    found[row, self.place[gram]] = 1 + math.log(count)
        return F.normalize(found * self.rarity, dim=1).to(views.x.device)
