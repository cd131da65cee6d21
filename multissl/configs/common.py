"""What recipes of several modalities share."""

from __future__ import annotations

from multissl.evaluators.base import Evaluator
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.layers.ema import Teacher


def watched(every: int) -> dict[str, Evaluator.Config]:
    """k-NN and collapse along the way, a linear probe at both ends."""
    return {
        "knn": KNN.Config(every=every),
        "linear": LinearProbe.Config(),
        "collapse": Collapse.Config(every=every),
    }


def batch_teacher(ema: float) -> Teacher.Config:
    """A teacher from momentum `ema` to 1 whose batch norms take each batch's own statistics (BYOL, MoCo, MSN)."""
    return Teacher.Config(ema=ema, final_ema=1.0, buffers="keep", batch_norm="batch")
