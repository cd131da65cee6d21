"""Recipes in which a larger network, trained before, teaches a smaller one with its heads."""

from __future__ import annotations

from multissl.config import vars_of
from multissl.configs.image.dino import dinov2_vitl14
from multissl.encoders.transformer import vit
from multissl.objectives.dino_distill import DINODistill
from multissl.recipe import Recipe


def dinov2_distill() -> Recipe:
    """DINOv2's distillation, ViT-S/14 of a larger network with its heads (Oquab et al. 2023, arXiv 2304.07193).

    Command: multissl train image/dinov2_distill --data "shards/*.tar" --objective.frozen_teacher.weights runs/vitg14
    Size: 625,000 steps of 2,048, ViT-S/14 beside its teacher; many GPUs.
    Measured: unmeasured

    The teacher is a run of image/dinov2_vitg14, or a training file of DINOv2. The paper's other sizes in the same line:
    ViT-B/14 by --encoders.image.dim 768 --encoders.image.heads 12, ViT-L/14 by --encoders.image.dim 1024
    --encoders.image.depth 24 --encoders.image.heads 16. The student's heads have the widths of the teacher's, which the
    paper does not give; its prototypes must be as many, and rest at no time, as in DINOv3's code.
    """
    made = dinov2_vitl14()
    made.encoders["image"] = vit("s", layerscale=1e-5)
    made.objective = DINODistill.Config(**vars_of(made.objective)).replace(freeze_last_layer=0)
    made.optim.lr, made.optim.lr_scaling = 1e-3, "none"
    made.batch_size = 2048
    return made
