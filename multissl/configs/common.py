"""What recipes of several modalities share."""

from __future__ import annotations

from multissl.evaluators.base import Evaluator
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe


def watched(every: int) -> dict[str, Evaluator.Config]:
    """k-NN and collapse along the way, a linear probe at both ends."""
    return {
        "knn": KNN.Config(every=every),
        "linear": LinearProbe.Config(),
        "collapse": Collapse.Config(every=every),
    }
