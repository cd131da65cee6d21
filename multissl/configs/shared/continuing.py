"""What recipes that continue from weights share: rates, the freeze at the start, and the guard against drift.

Heads are new and encoders are not. So heads learn first, at a rate of their own, while encoders rest: gradients of
heads that know nothing would undo what the weights hold (Kumar et al. 2022, arXiv 2202.10054). Then encoders follow at
a tenth of that rate, lower layers more slowly, as they are what transfers best.
"""

from __future__ import annotations

from typing import Literal

from multissl.configs.shared.common import watched
from multissl.contract.encoder import Encoder
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.drift import Drift
from multissl.recipe import Recipe

ENCODER = 0.1
"""Of the heads' learning rate: 5e-5 where that is 5e-4, between what DINOv2's high-resolution phase and fine-tuning of
such encoders take (1e-5 to 1e-4)."""
FROZEN = 500
"""Steps of heads alone: as many as a teacher of momentum 0.994 takes to follow its student three times over."""
EVERY = 500
"""Steps between two measurements, and two checkpoints."""


def continued(
    stream: str,
    modality: Modality.Config,
    encoder: Encoder.Config,
    objective: Objective.Config,
    *,
    batch_size: int,
    clip: float,
    layer_decay: float = 0.8,
    clip_per: Literal["all", "module"] = "module",
    min_std: float = 0.1,
) -> Recipe:
    """Return a recipe of one stream that goes on from weights for 5,000 steps.

    The peak is 5e-4 for heads at any batch, the warm-up lasts beyond the freeze. A layer decay of 0.8 leaves the lowest
    of 12 blocks 7 % of the rate; of 24 blocks 0.9 does. The guard lowers the rate where k-NN falls on the user's data,
    until --evals.drift.reference names other data on which the start should keep its worth.
    """
    # the encoder begins at half of its peak, with moments of the gradient that the frozen steps have settled
    optim = AdamW.Config(
        lr=5e-4, warmup=2 * FROZEN, final_lr=1e-6, weight_decay=0.04, layer_decay=layer_decay, patch_lr=0.2
    )
    guard = Drift.Config(every=EVERY, action="lower")
    return Recipe(
        modality=modality,
        encoders={stream: encoder},
        objective=objective,
        optim=optim,
        lr_by_stream={stream: ENCODER},
        frozen=FROZEN,
        batch_size=batch_size,
        steps=5_000,
        clip=clip,
        clip_per=clip_per,
        evals={**watched(EVERY, min_std), "drift": guard},
        save=Save(every=EVERY),
    )
