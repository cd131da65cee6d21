"""What recipes of several modalities share."""

from __future__ import annotations

from multissl.evaluators.base import Evaluator
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.layers.ema import Teacher


def watched(every: int, min_std: float = 0.1) -> dict[str, Evaluator.Config]:
    """k-NN and collapse along the way, a linear probe at both ends.

    A projector that begins with batch norm takes what all samples share out, so features may share a great deal and
    still tell samples apart: a smaller `min_std` is where such recipes call it a collapse.
    """
    return {
        "knn": KNN.Config(every=every),
        "linear": LinearProbe.Config(),
        "collapse": Collapse.Config(every=every, min_std=min_std),
    }


def batch_teacher(ema: float) -> Teacher.Config:
    """A teacher from momentum `ema` to 1 whose batch norms take each batch's own statistics (BYOL, MoCo, MSN)."""
    return Teacher.Config(ema=ema, final_ema=1.0, buffers="keep", batch_norm="batch")
