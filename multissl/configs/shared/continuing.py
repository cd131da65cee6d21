"""What recipes that continue from weights share: rates, the freeze at the start, and the guard against drift.

Heads are new and encoders are not. So heads learn first, at a rate of their own, while encoders rest: gradients of
heads that know nothing would undo what the weights hold (Kumar et al. 2022, arXiv 2202.10054). Then encoders follow at
a tenth of that rate, lower layers more slowly, as they are what transfers best.
"""

from __future__ import annotations

from multissl.configs.shared.common import watched
from multissl.contract.evaluator import Evaluator
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.drift import Drift

ENCODER = 0.1
"""Of the heads' learning rate: 5e-5 where that is 5e-4, between what DINOv2's high-resolution phase and fine-tuning of
such encoders take (1e-5 to 1e-4)."""
FROZEN = 500
"""Steps of heads alone: as many as a teacher of momentum 0.994 takes to follow its student three times over."""


def slow(layer_decay: float = 0.8) -> AdamW.Config:
    """Return the optimizer: a peak of 5e-4 for heads at any batch, a warm-up that lasts beyond the freeze.

    A layer decay of 0.8 leaves the lowest of 12 blocks 7 % of the rate; of 24 blocks 0.9 does.
    """
    # the encoder begins at half of its peak, with moments of the gradient that the frozen steps have settled
    return AdamW.Config(
        lr=5e-4, warmup=2 * FROZEN, final_lr=1e-6, weight_decay=0.04, layer_decay=layer_decay, patch_lr=0.2
    )


def guarded(every: int, min_std: float = 0.1) -> dict[str, Evaluator.Config]:
    """Return k-NN, collapse checks and a probe as elsewhere, and a guard that lowers the rate where k-NN falls.

    On the user's data until --evals.drift.reference names other data on which the start should keep its worth.
    """
    return {**watched(every, min_std), "drift": Drift.Config(every=every, action="lower")}
