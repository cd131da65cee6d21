"""Rows of tokens being filled, view by view.

Shapes: V views, B samples, L tokens of a row.  State: none.
"""

from __future__ import annotations

import numpy as np

from multissl.modalities.text.tokenizer import Tokens


class Rows:
    """Rows of a role being filled: [V, B, L]."""

    def __init__(self, views: int, batch: int, length: int, pad: int) -> None:
        self.ids = np.full((views, batch, length), pad, dtype=np.int32)
        self.starts = np.zeros((views, batch, length), dtype=bool)
        self.valid = np.zeros((views, batch, length), dtype=bool)
        self.coords = np.zeros((views, batch, length), dtype=np.float32)

    def put(self, view: int, sample: int, document: Tokens, first: int, width: int) -> None:
        """`width` tokens of a document from `first` on."""
        at, part = (view, sample, slice(0, width)), slice(first, first + width)
        self.ids[at], self.starts[at], self.valid[at] = document.ids[part], document.starts[part], True
        self.coords[at] = (np.arange(first, first + width) + 0.5) / len(document.ids)
