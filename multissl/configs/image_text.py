"""Recipes for pictures and their captions; both are built in."""

from __future__ import annotations

from multissl.configs.shared.pairs import clip_loss, paired, picture, shared_space, words
from multissl.contract.objective import Objective
from multissl.encoders.mlp import MLPEncoder
from multissl.evaluators.zero_shot import ZeroShot
from multissl.layers.heads import MLPHead
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.siglip import SigLIP
from multissl.objectives.weighted import Weighted
from multissl.recipe import Recipe


def slip() -> Recipe:
    """CLIP on the built-in pictures and captions, or on pairs of your own, and SimCLR on the pictures (SLIP).

    Command: multissl train image_text --data pairs.tar
    Size: 500 steps of 64, transformer 96 x 3 and transformer 96 x 2; 3 minutes on two processor cores.
    Measured: recall@1 25.9 % of 1,000 candidates (chance 0.13), k-NN of pictures 62.5 %; 3 minutes 4 seconds.

    SimCLR compares the picture as CLIP sees it with a crop, which saves one of the paper's three encodes; between two
    crops: --objective.terms.simclr.clean False
    """
    simclr = InfoNCE.Config(clean=True, projector=MLPHead.Config(hidden=256, out=64, layers=3))
    terms: dict[str, Objective.Config] = {"clip": clip_loss(), "simclr": simclr}
    return _image_text(Weighted.Config(terms=terms, streams={"simclr": ("image",)})).replace(steps=500)


def clip() -> Recipe:
    """CLIP alone, on clean views.

    Command: multissl train image_text/clip --data pairs.tar
    Size: 1,200 steps of 64, transformer 96 x 3 and transformer 96 x 2; 3 minutes on two processor cores.
    Measured: recall@1 17.0 % of 1,000 built-in candidates (chance 0.13); 2 minutes 49 seconds.
    """
    return _image_text(clip_loss())


def siglip() -> Recipe:
    """SigLIP: every picture and caption are classified as belonging together or not; bias about -ln(batch).

    Command: multissl train image_text/siglip --data pairs.tar
    Size: 1,200 steps of 64, transformer 96 x 3 and transformer 96 x 2; minutes on two processor cores.
    Measured: unmeasured
    """
    return _image_text(SigLIP.Config(bias=-5.0, projector=shared_space()))


def lit() -> Recipe:
    """LiT: the image tower stays as it starts, the text tower learns to read it.

    Command: multissl train image_text/lit --init runs/image
    Size: 1,200 steps of 64, transformer 96 x 3 and transformer 96 x 2; minutes on two processor cores.
    Measured: recall@1 24.1 % of 1,000 built-in candidates (untrained 0.0) with `--steps 200` and a tower of SLIP.
    """
    made = _image_text(clip_loss()).replace(locked=("image",))
    del made.evals["knn"]  # of what does not learn
    return made


def lit_features() -> Recipe:
    """LiT on features that a locked tower made once, so that it need not run at every step.

    Command: multissl train image_text/lit_features --data features.parquet
    Size: 600 steps of 64, MLP without layers and transformer 96 x 2; half a minute of one processor core.
    Measured: recall@1 20.4 % of 1,000 built-in candidates (untrained 0.1) with `--steps 400`, 30 seconds.

    The features come from
    multissl encode image_text/lit --init runs/image --data pairs.tar --stream image --out features.parquet
    """
    made = paired({"image": Tabular.Config(scaling="standard", corruption=(0.0,)), "text": words()})
    made.encoders["image"] = MLPEncoder.Config(dims=())
    del made.evals["knn"]  # of what does not learn
    return made


def _image_text(objective: Objective.Config) -> Recipe:
    made = paired({"image": picture(), "text": words()}, objective).replace(steps=1200)
    made.optim = made.optim.replace(lr=2e-3)  # captions of the built-in pairs are many, so is what they tell
    # the motifs are the classes of the built-in pairs; data without classes is measured by retrieval alone
    made.evals["zero_shot"] = ZeroShot.Config(templates=("{}", "a picture of {}", "{} in two colours"))
    return made
