"""Recipes for tables."""

from __future__ import annotations

from multissl.configs.shared.common import watched
from multissl.encoders.leave_one_out import LeaveOneOutEncoder
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import MLPHead
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.vime import VIME
from multissl.objectives.weighted import Weighted
from multissl.recipe import Recipe


def default() -> Recipe:
    """Denoising and mask prediction on rows with swapped cells.

    Command: multissl train tabular
    Size: 600 steps of 128, transformer 64 x 2; 80 seconds of one processor core.
    Measured: k-NN 70.2 % on the built-in rows (untrained 32.5, raw input 63.3); 1 minute 20 seconds.
    """
    return Recipe(
        modality=Tabular.Config(),
        encoders={
            "tabular": TransformerEncoder.Config(dim=64, depth=2, heads=4, pooling="mean", init_std=0.0)
        },
        objective=VIME.Config(corrupt=0.3, hidden=128),
        optim=AdamW.Config(lr=1e-3, weight_decay=1e-5, warmup=50),
        batch_size=128,
        steps=600,
        evals=watched(every=200),
    )


def scarf() -> Recipe:
    """SCARF: a row and a copy with 60 % of its cells swapped recognize each other.

    Command: multissl train tabular/scarf --data rows.csv --modality.label target
    Size: 1,000 steps of 128, MLP 256 x 4; minutes on two processor cores.
    Measured: fine-tuned on 130 labels of california R2 58.6 %, 2,000 steps (random weights 53.1, classical 61.1).
    """
    return Recipe(
        modality=Tabular.Config(corruption=(0.0, 0.6)),
        encoders={"tabular": MLPEncoder.Config(dims=(256, 256, 256, 256))},
        objective=InfoNCE.Config(temperature=1.0, projector=MLPHead.Config(hidden=256, out=256, layers=2)),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.0, warmup=20),
        batch_size=128,
        steps=1000,
        evals=watched(every=250),
    )


def vime() -> Recipe:
    """VIME as published: columns shuffled, 30 % of the cells, one linear head each for mask and cells.

    Command: multissl train tabular/vime --data rows.csv --modality.label target
    Size: 1,000 steps of 128, MLP 256 x 2; minutes on two processor cores.
    Measured: unmeasured
    """
    return Recipe(
        modality=Tabular.Config(corrupt_by="permute", mask_group=64),
        encoders={"tabular": MLPEncoder.Config(dims=(256, 256))},
        objective=VIME.Config(),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.0, warmup=20),
        batch_size=128,
        steps=1000,
        evals=watched(every=250),
    )


def subtab() -> Recipe:
    """SubTab-like: four overlapping runs of columns rebuild the row and recognize each other.

    Command: multissl train tabular/subtab --data rows.csv --modality.label target
    Size: 600 steps of 128, MLP 256 x 2; minutes on two processor cores.
    Measured: unmeasured

    Not provided: the squared distance of its embeddings as a third term. Features are of whole rows, not means over
    subsets.
    """
    return Recipe(
        modality=Tabular.Config(corrupt_by="subset", corruption=(0.5625,), subset_noise=0.3),
        encoders={"tabular": MLPEncoder.Config(dims=(256, 256))},
        objective=Weighted.Config(
            terms={
                "rebuild": VIME.Config(corrupt=0.0, num_views=4, mask_weight=0.0, cells_weight=1.0),
                "contrast": InfoNCE.Config(
                    num_views=4, projector=MLPHead.Config(hidden=256, out=128, layers=2)
                ),
            }
        ),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.0, warmup=20),
        batch_size=128,
        steps=600,
        evals=watched(every=200),
    )


def saint() -> Recipe:
    """SAINT-like: 10 % of the cells from one other row, contrast and denoising by column tokens.

    Command: multissl train tabular/saint --data rows.csv --modality.label target
    Size: 600 steps of 128, transformer 64 x 2; minutes on two processor cores.
    Measured: unmeasured

    Not provided: mixup of embeddings and attention between rows, which would make a row's features depend on its batch.
    """
    return Recipe(
        modality=Tabular.Config(corrupt_by="donor", corruption=(0.0, 0.1)),
        encoders={
            "tabular": TransformerEncoder.Config(dim=64, depth=2, heads=4, pooling="mean", init_std=0.0)
        },
        objective=Weighted.Config(
            terms={
                "contrast": InfoNCE.Config(
                    temperature=0.7, projector=MLPHead.Config(hidden=128, out=64, layers=2)
                ),
                "denoise": VIME.Config(
                    corrupt=0.0, num_views=2, mask_weight=0.0, cells_weight=1.0, reads="tokens"
                ),
            },
            weights={"contrast": 0.5},
        ),
        optim=AdamW.Config(lr=1e-3, weight_decay=1e-5, warmup=20),
        batch_size=128,
        steps=600,
        evals=watched(every=200),
    )


def few_labels() -> Recipe:
    """Each column predicted from all the others, for few labeled rows beside many unlabeled ones.

    Command: multissl train tabular/few_labels --data rows.csv --modality.label target
    Size: 1,000 steps of 128, leave-one-out MLP 128 x 3; minutes on two processor cores.
    Measured: R2 63.5 % with 144 labels of california beside raw cells, 192 channels (untrained 61.5, boosting 62.3).

    Features for a linear model; boosting tuned on the same labeled rows can do as well or better.
    """
    return Recipe(
        modality=Tabular.Config(corrupt_by="hide", corruption=(0.6,)),
        encoders={"tabular": LeaveOneOutEncoder.Config()},
        objective=VIME.Config(corrupt=0.0, mask_weight=0.0, cells_weight=1.0, reads="tokens"),
        optim=AdamW.Config(lr=2e-3, weight_decay=1e-4, warmup=50),
        batch_size=128,
        steps=1000,
        evals=watched(every=500),
    )
