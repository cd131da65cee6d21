"""Recipes of several stages for images: a demo for two processor cores, and published sizes.

The published sizes are unmeasured here: they need many GPUs.
"""

from __future__ import annotations

from multissl.configs.image.dino import default, dinov2_vitl14, dinov2_vitl16_in1k
from multissl.configs.shared.common import watched
from multissl.configs.shared.stages import gram_anchoring, high_resolution, small_first
from multissl.encoders.transformer import vit
from multissl.layers.teacher import Teacher
from multissl.recipe import Recipe


def dinov2_stages() -> Recipe:
    """DINOv2's objective on the built-in pictures in three stages: small pictures, larger ones, a Gram anchor.

    Command: multissl train image/dinov2_stages
    Size: 900 steps of 64, transformer 64 x 2; minutes on two processor cores.
    Measured: unmeasured
    """
    made = default()
    made.modality = made.modality.replace(size=16, local_size=8)
    made.steps, made.evals = 600, watched(every=200)
    made.optim.warmup = 60
    larger = made.then(high_resolution(made, 32, 200, local_size=16, rate=0.5))
    # the teacher of these short stages is quick, so one look at it is enough
    return larger.then(gram_anchoring(made, (64, 64), 100, every=0, rate=0.1))


def dinov2_vitl14_high_resolution() -> Recipe:
    """DINOv2's large recipe, ViT-L/14, then 10,000 steps at 518 pixels.

    Command: multissl train image/dinov2_vitl14_high_resolution --data "shards/*.tar" --parallel.shard 8
    Size: 635,000 steps of 3,072, ViT-L/14; 96 GPUs.
    Measured: unmeasured

    Oquab et al. 2023, arXiv 2304.07193, section 4. A tenth of the rate is ours: the paper says none.
    Local views keep their 98 pixels.
    """
    made = dinov2_vitl14()
    return made.then(high_resolution(made, 518, 10_000))


def dinov2_vitl14_gram() -> Recipe:
    """DINOv2's large recipe, ViT-L/14, then a stage with DINOv3's Gram anchor.

    Command: multissl train image/dinov2_vitl14_gram --data "shards/*.tar" --parallel.shard 8
    Size: 665,000 steps of 3,072, ViT-L/14; 96 GPUs.
    Measured: unmeasured

    Siméoni et al. 2025, arXiv 2508.10104, section 4. The anchor's weight, its crops of twice the size and its three
    renewals are DINOv3's; 40,000 steps, a tenth of the rate and the recipe before it are ours.
    """
    made = dinov2_vitl14()
    return made.then(gram_anchoring(made, (448, 448), 40_000))


def fastdinov2_vitb16() -> Recipe:
    """DINOv2's objective on small pictures first, ViT-B/16, ImageNet-1k, after FastDINOv2.

    Command: multissl train image/fastdinov2_vitb16 --data torchvision:ImageNet?root=FOLDER
    Size: 250,000 steps of 1,024, ViT-B/16; 8 GPUs.
    Measured: unmeasured

    arXiv 2507.03779: 200 epochs, three quarters of them at 112 and 48 pixels. Differs from the paper as `small_first`
    says; the teacher's momentum and the batch are ours.
    """
    made = dinov2_vitl16_in1k()
    made.encoders["image"] = vit("b", layerscale=1e-5, drop_path=0.0)
    made.objective.teacher = Teacher.Config(ema=0.992)  # type: ignore[attr-defined]
    made.batch_size, made.steps = 1024, 250_000
    made.optim.warmup = 25_000
    return small_first(made, 112, 48)
