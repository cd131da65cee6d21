"""A chain of three stages small enough for tests: low resolution, high resolution, Gram anchoring.

`tests/helpers/chain.py:recipe` also serves the command line.
"""

from __future__ import annotations

from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.dino import DINO
from multissl.recipe import Recipe
from multissl.stages import Stage

HIGH = Stage(name="high", steps=4, changes={"modality.size": 16, "modality.local_size": 8, "optim.lr": 5e-4})
GRAM = Stage(
    name="gram",
    steps=4,
    changes={
        "batch_size": 4,
        "objective.gram.weight": 2.0,
        "objective.gram.size": (32, 32),
        "objective.gram.every": 2,
        "objective.gram.refreshes": 1,
    },
)


def first() -> Recipe:
    """Return the recipe without stages: pictures of 2 x 2 tokens, 4 steps."""
    head = PrototypeHead.Config(prototypes=16, bottleneck=8, hidden=16)
    return Recipe(
        modality=Image.Config(size=8, local_size=4, patch=4, blur="none"),
        encoders={"image": TransformerEncoder.Config(dim=16, depth=1, heads=2)},
        objective=DINO.Config(
            num_local=1,
            head=head,
            ibot_head=head,
            teacher=Teacher.Config(ema=0.9),
            freeze_last_layer=1,
            teacher_temperature_steps=2,
        ),
        optim=AdamW.Config(lr=1e-3, warmup=2, final_weight_decay=0.2),
        batch_size=8,
        steps=4,
        save=Save(every=2, keep_last=1),
        log_every=1,
        loggers={},
        data=Data(workers=0),
    )


def recipe() -> Recipe:
    """Return the chain."""
    return first().then(HIGH, GRAM)
