"""What recipes of several modalities share: their members, towers and evaluators; a pair is data and a recipe.

`image_text` needs no data, its pictures and captions are built in; the others are given theirs. Sizes are for minutes
on two processor cores. Your own encoders or pretrained ones are a line each, as in
multissl train image_text/lit --encoders.image timm --encoders.image.pretrained True
"""

from __future__ import annotations

from typing import Any

from multissl.configs.shared.common import FITTING
from multissl.contract.encoder import Encoder
from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.retrieval import Retrieval
from multissl.layers.heads import MLPHead
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.objectives.clip import CLIP
from multissl.recipe import Recipe

SECONDS = 1.6
"""What clips of sound and of frames cover, so that both show the same stretch of a file."""


def clip_loss(**options: Any) -> CLIP.Config:
    """Return CLIP in a space of 64 numbers; `options` are its own."""
    return CLIP.Config(projector=shared_space(), **options)


def shared_space() -> MLPHead.Config:
    """Return a linear map into 64 numbers."""
    return MLPHead.Config(out=64, layers=1, norm="none")


def picture() -> Image.Config:
    """Return pictures in views of their own size, up to 224 pixels; the built-in ones have 32."""
    return Image.Config(**FITTING, global_scale=(0.5, 1.0))


def sound() -> Audio.Config:
    """Return sounds of 1.6 seconds."""
    return Audio.Config(frames=round(100 * SECONDS), local_frames=80, mels=64)


def film() -> Video.Config:
    """Return films of 8 frames of 64 pixels, over 1.6 seconds."""
    return Video.Config(frames=8, size=64, local_size=32, patch=16, seconds=SECONDS)


def words() -> Text.Config:
    """Return captions in views that hold nine of ten of them; of the built-in ones 16 tokens."""
    return Text.Config(length=0, local_length=0, pack=False, vocab=400)


def paired(
    members: dict[str, Modality.Config],
    objective: Objective.Config | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Recipe:
    """Return a recipe of towers of 96 numbers: three blocks for what is seen or heard, two for words and cells."""
    evals: dict[str, Evaluator.Config] = {
        "retrieval": Retrieval.Config(every=200),
        "knn": KNN.Config(bank=2000),
        "collapse": Collapse.Config(every=200),
    }
    # faster, all embeddings end in one point where few things are distinguished: classes, one speaker's films
    return Recipe(
        modality=Paired.Config(members=members, **options),
        encoders={name: _tower(member) for name, member in members.items()},
        objective=objective or clip_loss(),
        optim=AdamW.Config(lr=5e-4, warmup=50, weight_decay=0.1),
        batch_size=batch_size,
        steps=600,
        evals=evals,
        save=Save(every=300),
    )


def _tower(member: Modality.Config) -> Encoder.Config:
    small = isinstance(member, Text.Config | Tabular.Config)
    return TransformerEncoder.Config(
        dim=96,
        depth=2 if small else 3,
        heads=4,
        ffn_ratio=2.0,
        conv_stem=isinstance(member, Image.Config | Audio.Config),
        pooling="mean",
        init_std=0.0,
    )
