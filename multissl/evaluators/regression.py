"""What supervised learning on classical features makes of pairs: the figure that captions of a few kinds ask for.

Where pairs hold few different captions, retrieval is classification, and a linear map from classical features of one
stream to those of the other, fitted to the training pairs, may find most of them. Ridge regression in its dual form;
a tenth of the training pairs chooses the penalty by their mean cosine.
Shapes: S training pairs, Q questions, F and G features of the two streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Baseline, Modality
from multissl.contract.plans import Masking
from multissl.evaluators.shared_space import Embedded, embed
from multissl.inference import drawn

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""To choose from, each a share of the mean square of the features."""


def classical(modality: Modality, split: str, limit: int) -> Embedded | None:
    """Return the raw features of samples of a split, unit vectors whose width differs by stream; None without any."""
    baseline = modality.baselines().get("raw")
    data: Any = modality.dataset(split)
    samples = [data[i] for i in drawn(len(data), limit)]
    if baseline is None or len(samples) < 2:
        return None
    encoders = FrozenEncoders(_as_embeddings(baseline), torch.device("cpu"))
    return embed(encoders, modality, samples, [*modality.streams()], f"the {split} split")


def _as_embeddings(baseline: Baseline) -> Any:
    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        found = [baseline(v).float().flatten(1) for v in views]
        return [Features(pooled=x, tokens=x[:, None], embedding=x) for x in found]

    return encode


def predicted(x: Tensor, y: Tensor, questions: Tensor) -> Tensor:
    """Return what regression of y [S, G] on x [S, F] answers to questions [Q, F], less the mean of y: [Q, G]."""
    x, y, questions = x.double(), y.double(), questions.double()
    last = max(1, len(x) // 10)

    def error(penalty: float) -> float:
        answers = _ridge(x[:-last], y[:-last], x[-last:], penalty)
        truth = y[-last:] - y[:-last].mean(0)
        return -float(F.cosine_similarity(answers, truth, dim=1).mean())

    return _ridge(x, y, questions, min(PENALTIES, key=error))


def _ridge(x: Tensor, y: Tensor, questions: Tensor, penalty: float) -> Tensor:
    center = x.mean(0)
    x, questions = x - center, questions - center
    kernel = x @ x.T  # [S, S]
    strength = penalty * kernel.diagonal().mean() + torch.finfo(x.dtype).tiny
    weights = torch.linalg.solve(kernel + len(x) * strength * torch.eye(len(x), dtype=x.dtype), y - y.mean(0))
    return questions @ (x.T @ weights)
