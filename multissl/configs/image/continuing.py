"""Recipes that continue from released weights, or from a run, on pictures of one's own."""

from __future__ import annotations

from multissl.configs.shared.continuing import FROZEN, continued
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.dino import DINO
from multissl.recipe import Recipe


def dinov2_continue() -> Recipe:
    """DINOv2's objective from weights on: heads first, then the encoder at a low rate that falls with depth.

    Command: multissl train image/dinov2_continue --init dinov2_vits14_pretrain.pth --data FOLDER
    Size: 5,000 steps of 128, the encoder of the weights; one GPU.
    Measured: unmeasured

    For a run of ours on small pictures: --init RUN --modality.size 32 --modality.local_size 16 --modality.patch 4
    """
    # few prototypes, as the data of a domain is small beside what the weights saw; the teacher, which is exported, is
    # slow enough that noise of few samples averages out and quick enough to have followed at the end
    head = PrototypeHead.Config(prototypes=4096, bottleneck=256, hidden=2048)
    return continued(
        "image",
        Image.Config(size=224, local_size=98, patch=14, blur="half"),
        # what stands at its default is taken from the weights; the drop path is the training's own
        TransformerEncoder.Config(drop_path=0.1),
        DINO.Config(
            num_local=6,
            head=head,
            ibot_head=head,
            teacher=Teacher.Config(ema=0.994),
            teacher_temperature_start=0.04,
            teacher_temperature=0.07,
            teacher_temperature_steps=2 * FROZEN,
            koleo_group=64,
        ),
        batch_size=128,
        clip=3.0,
    )
