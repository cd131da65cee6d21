"""What recipes of several modalities share."""

from __future__ import annotations

from typing import Any

from multissl.contract.evaluator import Evaluator
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.objectives.dino import DINO


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


def small_dino(**options: Any) -> DINO.Config:
    """DINO without masks for a few hundred steps: few prototypes, a quick teacher, two local views."""
    given = {
        "ibot_weight": 0.0,
        "koleo_weight": 0.0,
        "num_local": 2,
        "head": PrototypeHead.Config(prototypes=256, bottleneck=32, hidden=128, init_std=0.0),
        "teacher": Teacher.Config(ema=0.9, final_ema=0.99),
        "freeze_last_layer": 20,
    }
    return DINO.Config(**given | options)


def batch_teacher(ema: float) -> Teacher.Config:
    """A teacher from momentum `ema` to 1 whose batch norms take each batch's own statistics (BYOL, MoCo, MSN)."""
    return Teacher.Config(ema=ema, final_ema=1.0, buffers="keep", batch_norm="batch")
