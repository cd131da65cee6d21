"""Recipes for images: a demo for two processor cores, the published DINO family, and a setting for small data.

The papers' recipes carry their own hyperparameters and are unmeasured here: they need many GPUs.
"""

from __future__ import annotations

from typing import Any, Literal

from multissl.configs.shared.common import FITTING, watched
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.dino import DINO
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe


def default() -> Recipe:
    """DINOv2's objective on the built-in pictures.

    Command: multissl train image
    Size: 900 steps of 64, transformer 64 x 2; 3 minutes on two processor cores.
    Measured: k-NN 82.3 % on the built-in pictures (untrained 26.7, raw pixels 35.2); 3 minutes 34 seconds.
    """
    # Two blocks of width 64 learn motifs within a thousand steps where deeper ones do not; narrow layers need larger
    # initial weights; a fast teacher, sharp targets and little iBOT let the view loss start. Color is drawn for each
    # picture and would identify it, so views change hue and saturation at will.
    head = PrototypeHead.Config(prototypes=256, bottleneck=32, hidden=128, init_std=0.0)
    return Recipe(
        modality=Image.Config(
            **FITTING,
            global_scale=(0.4, 1.0),
            local_scale=(0.2, 0.6),
            saturation=0.5,
            hue=0.5,
            grayscale=0.5,
            blur="half",
        ),
        encoders={
            "image": TransformerEncoder.Config(
                dim=64, depth=2, heads=2, ffn_ratio=2.0, conv_stem=True, layerscale=1.0, init_std=0.0
            )
        },
        objective=DINO.Config(
            num_local=2,
            head=head,
            ibot_head=head,
            ibot_weight=0.1,
            koleo_weight=0.02,
            teacher=Teacher.Config(ema=0.9, final_ema=0.99),
            teacher_temperature_start=0.02,
            teacher_temperature=0.02,
            freeze_last_layer=50,
        ),
        optim=AdamW.Config(lr=2e-3, warmup=90, final_lr=1e-5, weight_decay=0.04, final_weight_decay=0.2),
        batch_size=64,
        steps=900,
        clip=3.0,
        clip_per="module",
        evals=watched(every=300),
        save=Save(every=300),
    )


def dinov2_cpu() -> Recipe:
    """DINOv2's objective for a few thousand real pictures on a processor; quick where these are small.

    Command: multissl train image/dinov2_cpu --data cifar10-train.parquet
    Size: 5,000 steps of 64, transformer 96 x 3; half an hour on two processor cores.
    Measured: k-NN 53.1 % on CIFAR-10 (untrained 33.3) with `--steps 4300`, 20,000 files, 31.7 minutes.
    """
    made = default()
    head = PrototypeHead.Config(prototypes=512, bottleneck=32, hidden=192, init_std=0.0)
    # Color tells classes apart in photographs, so it changes less than in the demo.
    made.modality = Image.Config(
        **FITTING, global_scale=(0.3, 1.0), local_scale=(0.15, 0.5), saturation=0.4, blur="half", solarize=0.1
    )
    made.encoders["image"] = TransformerEncoder.Config(
        dim=96, depth=3, heads=3, ffn_ratio=2.0, conv_stem=True, layerscale=1.0, init_std=0.0
    )
    made.objective.head = made.objective.ibot_head = head  # type: ignore[attr-defined]
    made.optim.warmup = 500
    made.steps = 5_000
    made.evals = watched(every=500)
    return made


def dino_vits16() -> Recipe:
    """DINO, ViT-S/16, ImageNet-1k, 100 epochs (Caron et al. 2021, arXiv 2104.14294, section 3).

    Command: multissl train image/dino_vits16 --data torchvision:ImageNet?root=FOLDER
    Size: 125,100 steps of 1,024, ViT-S/16; many GPUs.
    Measured: unmeasured

    The values are those that the official code has for 100 epochs. Differs from the paper: the teacher's temperature
    stays at 0.04, as in that code; the paper's longer runs raise it to 0.07 in 30 epochs and train the prototypes'
    gain.
    """
    epoch = 1251  # steps of 1024 images
    return Recipe(
        modality=Image.Config(
            patch=16,
            global_scale=(0.4, 1.0),
            local_scale=(0.05, 0.4),
            blur="paper",
            blur_kernel=23,
            size=224,
            local_size=96,
        ),
        encoders={"image": vit("s", drop_path=0.1, drop_path_shape="linear")},
        objective=DINO.Config(
            ibot_weight=0.0,
            koleo_weight=0.0,
            num_local=8,
            centering="ema",
            head=PrototypeHead.Config(prototypes=65_536, gain="fixed"),
            teacher=Teacher.Config(ema=0.996),
            teacher_temperature_start=0.04,
            teacher_temperature=0.04,
            freeze_last_layer=epoch,
        ),
        optim=AdamW.Config(
            lr=5e-4,
            lr_scaling="linear",
            warmup=10 * epoch,
            weight_decay=0.04,
            final_weight_decay=0.4,
            decay_tokens=True,
        ),
        batch_size=1024,
        steps=100 * epoch,
        clip=3.0,
        clip_per="parameter",
        evals=watched(every=10 * epoch),
    )


def ibot_vits16() -> Recipe:
    """iBOT, ViT-S/16, ImageNet-1k, 800 epochs (Zhou et al. 2022, arXiv 2111.07832, appendix).

    Command: multissl train image/ibot_vits16 --data torchvision:ImageNet?root=FOLDER
    Size: 1,000,800 steps of 1,024, ViT-S/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: exactly half of the global views are masked, by ratios spread evenly from 0.1 to 0.5, where
    the official code draws both for each view by itself.
    """
    epoch = 1251  # steps of 1024 images
    made = dino_vits16()
    made.modality = Image.Config(
        patch=16,
        global_scale=(0.25, 1.0),
        local_scale=(0.05, 0.25),
        blur="paper",
        blur_kernel=23,
        size=224,
        local_size=96,
        mask_smallest=16,
    )
    made.objective = DINO.Config(
        koleo_weight=0.0,
        num_local=10,
        tied_heads=True,
        mask_ratio=(0.1, 0.5),
        mask_share=0.5,
        centering="ema",
        center_tokens="all",
        head=PrototypeHead.Config(prototypes=8192, gain="trainable"),
        teacher=Teacher.Config(ema=0.996),
        teacher_temperature_start=0.04,
        teacher_temperature=0.07,
        teacher_temperature_steps=30 * epoch,
        freeze_last_layer=epoch,
    )
    made.steps = 800 * epoch
    made.optim.lr = 5e-4
    return made


def dinov2_vitl16_in1k() -> Recipe:
    """DINOv2's short recipe, ViT-L/16, ImageNet-1k (Oquab et al. 2023, arXiv 2304.07193).

    Command: multissl train image/dinov2_vitl16_in1k --data torchvision:ImageNet?root=FOLDER
    Size: 125,000 steps of 2,048, ViT-L/16; 32 GPUs.
    Measured: unmeasured

    With the values of the published training configuration.
    """
    made = _dinov2(
        "l",
        patch=16,
        drop_path=0.3,
        objective=_targets(65_536, tied=True, centering="ema", center_lazy=True, center_weighting="equal"),
        optim=_adamw(lr=4e-3, warmup=12_500, final_weight_decay=0.4, layer_decay=0.9),
        ema=0.992,
        batch_size=2048,
        steps=125_000,
    )
    made.modality.mask_group = 64  # type: ignore[attr-defined]  # the published batch of a GPU
    return made


def dinov2_vitl14() -> Recipe:
    """DINOv2's large recipe from scratch, ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193).

    Command: multissl train image/dinov2_vitl14 --data "shards/*.tar"
    Size: 625,000 steps of 3,072, ViT-L/14; 96 GPUs.
    Measured: unmeasured
    """
    return _dinov2_large("l")


def dinov2_vitg14() -> Recipe:
    """DINOv2's large recipe from scratch, ViT-g/14 (Oquab et al. 2023, arXiv 2304.07193).

    Command: multissl train image/dinov2_vitg14 --data "shards/*.tar" --parallel.shard 8
    Size: 625,000 steps of 3,072, ViT-g/14; 256 GPUs.
    Measured: unmeasured
    """
    made = _dinov2_large("g")
    made.parallel = Parallel(shard=8, checkpoint_activations=True)
    return made


def dinov2_vits14() -> Recipe:
    """The large recipe of DINOv2 at ViT-S/14 from scratch; ours, as the paper distils this size.

    Command: multissl train image/dinov2_vits14 --data "shards/*.tar"
    Size: 625,000 steps of 3,072, ViT-S/14; many GPUs.
    Measured: unmeasured
    """
    return _dinov2_large("s", drop_path=0.0, lr=4e-4)


def dinov2_vitb14() -> Recipe:
    """The large recipe of DINOv2 at ViT-B/14 from scratch; ours, as the paper distils this size.

    Command: multissl train image/dinov2_vitb14 --data "shards/*.tar"
    Size: 625,000 steps of 3,072, ViT-B/14; many GPUs.
    Measured: unmeasured
    """
    return _dinov2_large("b", drop_path=0.1, lr=3e-4)


def dinov2_small_data() -> Recipe:
    """DINOv2's objective for 10 to 500 thousand pictures: prototypes and averages scaled to the batch.

    Command: multissl train image/dinov2_small_data --data FOLDER
    Size: 20,000 steps of 256, ViT-S; one GPU.
    Measured: unmeasured

    Views of 224 pixels, local ones of 98 and tokens of 14, or less where the pictures are smaller.
    """
    head = PrototypeHead.Config(prototypes=4096, bottleneck=256, hidden=2048)
    return Recipe(
        modality=Image.Config(**FITTING, blur="half"),
        encoders={"image": vit("s", layerscale=1e-1, drop_path=0.05)},
        objective=DINO.Config(
            num_local=4,
            head=head,
            ibot_head=head,
            centering="sinkhorn",
            teacher=Teacher.Config(ema=0.99),
            teacher_temperature_start=0.04,
            teacher_temperature=0.05,
            teacher_temperature_steps=2_000,
            koleo_group=64,
        ),
        optim=AdamW.Config(
            lr=2e-3, lr_scaling="sqrt", warmup=1_000, weight_decay=0.04, final_weight_decay=0.2
        ),
        batch_size=256,
        steps=20_000,
        clip=3.0,
        clip_per="module",
        evals=watched(every=1_000),
    )


def _targets(prototypes: int, tied: bool = False, bottleneck: int = 256, **options: Any) -> DINO.Config:
    return DINO.Config(
        num_local=8,
        tied_heads=tied,
        head=PrototypeHead.Config(prototypes=prototypes, bottleneck=bottleneck),
        ibot_head=PrototypeHead.Config(prototypes=prototypes, bottleneck=256),
        teacher_temperature_start=0.04,
        teacher_temperature=0.07,
        teacher_temperature_steps=37_500,
        freeze_last_layer=1_250,
        koleo_group=64,
        reference_counts=True,
        **options,
    )


def _adamw(lr: float, warmup: int, final_weight_decay: float, layer_decay: float = 1.0) -> AdamW.Config:
    return AdamW.Config(
        lr=lr,
        lr_scaling="sqrt",
        warmup=warmup,
        weight_decay=0.04,
        final_weight_decay=final_weight_decay,
        layer_decay=layer_decay,
        patch_lr=0.2,
        decay_tokens=True,
    )


def _dinov2(
    size: Literal["s", "b", "l", "g"],
    patch: int,
    drop_path: float,
    objective: DINO.Config,
    optim: AdamW.Config,
    ema: float,
    batch_size: int,
    steps: int,
) -> Recipe:
    objective.teacher = Teacher.Config(ema=ema)
    return Recipe(
        modality=Image.Config(patch=patch, size=224, local_size=98 if patch == 14 else 96),
        encoders={"image": vit(size, layerscale=1e-5, drop_path=drop_path)},
        objective=objective,
        optim=optim,
        batch_size=batch_size,
        steps=steps,
        clip=3.0,
        clip_per="module",
        evals=watched(every=12_500),
        save=Save(every=2_500, keep_every=25_000),
    )


def _dinov2_large(size: Literal["s", "b", "l", "g"], drop_path: float = 0.4, lr: float = 2e-4) -> Recipe:
    made = _dinov2(
        size,
        patch=14,
        drop_path=drop_path,
        objective=_targets(131_072, bottleneck=384, centering="sinkhorn"),
        optim=_adamw(lr=lr, warmup=100_000, final_weight_decay=0.2),
        ema=0.994,
        batch_size=3072,
        steps=625_000,
    )
    if size in ("l", "g"):
        made.encoders["image"] = vit(size, layerscale=1e-5, drop_path=drop_path, ffn="swiglu")
    return made
