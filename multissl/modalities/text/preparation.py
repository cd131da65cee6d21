"""Ids of tokens as clean views.  Shapes: B documents, L tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multissl.contract.plans import StreamSpec
from multissl.contract.preparation import Constants, FreeAxis, Preparation


@dataclass(kw_only=True)
class IdPreparation(Preparation):
    """Ids [B, L] of the run's tokenizer, and which of them are real."""

    length: int
    vocab: int
    vocabulary: dict[str, Any]
    """The run's vocabulary; its entry tokenizer is what Hugging Face's tokenizers read."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Return ids as they are."""
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"a tensor {x.dtype} of shape {tuple(x.shape)}: this module reads {self.reads}")
        return x, mask

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return ids, the last quarter of every second row padding."""
        length = max(self.length * 3 // 4, 1) if other else self.length
        ids = torch.arange(rows * length).view(rows, length) * 7919 % self.vocab
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[1::2, max(length * 3 // 4, 1) :] = False
        return ids, mask

    def describe(self) -> dict[str, Any]:
        """Return the vocabulary too."""
        return {"input": self.reads, "vocabulary": self.vocabulary}


def preparation_of(spec: StreamSpec, vocabulary: dict[str, Any]) -> IdPreparation:
    """Return the preparation of rows of a stream's ids."""
    length = spec.shape[0]
    return IdPreparation(
        reads=f"ids of tokens [B, L], int64, L up to {length}, and a mask [B, L] that says which are real",
        free_axes=(FreeAxis(axis=1, name="length", most=length),),
        takes_mask=True,
        length=length,
        vocab=spec.vocab,
        vocabulary=vocabulary,
    )
