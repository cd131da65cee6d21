"""Tests of modalities, and what several of them use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


def same_tensors(one: Any, other: Any) -> None:
    """Check that two trees, such as what `collate` gives, have the same structure and equal tensors."""
    left, shape = tree_flatten(one)
    right, expected = tree_flatten(other)
    assert shape == expected
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
