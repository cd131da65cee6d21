"""What recipes of several modalities share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from multissl.contract.evaluator import Evaluator
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.objectives.dino import DINO

FITTING: Mapping[str, Any] = MappingProxyType({"size": 0, "local_size": 0, "patch": 0, "blur_kernel": 0})
"""Options of pictures whose sizes are taken from the training data; of 32 pixels: 32, 16, 4 and 5."""


def watched(every: int, min_std: float = 0.1) -> dict[str, Evaluator.Config]:
    """Return k-NN and collapse checks every so many steps, and a linear probe at both ends.

    A projector that begins with batch norm removes what all samples have in common, so features may have a high mean
    cosine and still tell samples apart: such recipes lower `min_std`, below which features count as collapsed.
    """
    return {
        "knn": KNN.Config(every=every),
        "linear": LinearProbe.Config(),
        "collapse": Collapse.Config(every=every, min_std=min_std),
    }


def small_dino(**options: Any) -> DINO.Config:
    """Return DINO without masks for a few hundred steps: few prototypes, a quick teacher, two local views."""
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
    """Return a teacher from momentum `ema` to 1 whose batch norms take each batch's own statistics."""
    return Teacher.Config(ema=ema, final_ema=1.0, buffers="keep", batch_norm="batch")
