"""Recipes for pairs of modalities: any encoders, any objective over streams; a pair is data and a recipe.

`image_text` needs no data, its pictures and captions are built in; the others are given theirs. Sizes are for minutes
on two processor cores. Encoders of one's own or pretrained ones are a line each, as in
multissl train image_text/lit --encoders.image timm --encoders.image.pretrained True
"""

from __future__ import annotations

from typing import Any

from multissl.contract.encoder import Encoder
from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.retrieval import Retrieval
from multissl.evaluators.zero_shot import ZeroShot
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.objectives.cav_mae import CAVMAE
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.siglip import SigLIP
from multissl.objectives.weighted import Weighted
from multissl.recipe import Recipe

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SECONDS = 1.6
"""What clips of sound and of frames cover, so that both show the same stretch of a file."""


def image_text__slip() -> Recipe:
    """CLIP on the built-in pictures and captions, or on pairs of one's own, and SimCLR on the pictures (SLIP).

    multissl train image_text --data pairs.tar

    SimCLR compares the picture as CLIP sees it with a crop, which saves one of the paper's three encodes; between two
    crops: --objective.terms.simclr.clean False
    """
    simclr = InfoNCE.Config(clean=True, projector=MLPHead.Config(hidden=256, out=64, layers=3))
    terms: dict[str, Objective.Config] = {"clip": _clip(), "simclr": simclr}
    return _image_text(Weighted.Config(terms=terms, streams={"simclr": ("image",)})).replace(steps=500)


def image_text__clip() -> Recipe:
    """CLIP alone, on clean views."""
    return _image_text(_clip())


def image_text__siglip() -> Recipe:
    """SigLIP: every picture and caption are asked whether they belong together; bias about -ln(batch)."""
    return _image_text(SigLIP.Config(bias=-5.0, projector=_space()))


def image_text__lit() -> Recipe:
    """LiT: the image tower stays as it starts, the text tower learns to read it.

    multissl train image_text/lit --init runs/image
    """
    made = _image_text(_clip()).replace(locked=("image",))
    del made.evals["knn"]  # of what does not learn
    return made


def image_text__lit_features() -> Recipe:
    """LiT on features that a locked tower made once, so that it need not run at every step.

    multissl encode image_text/lit --init runs/image --data pairs.tar --stream image --out features.parquet
    multissl train image_text/lit_features --data features.parquet
    """
    made = _recipe({"image": Tabular.Config(scaling="standard", corruption=(0.0,)), "text": _words()})
    made.encoders["image"] = MLPEncoder.Config(dims=())
    del made.evals["knn"]  # of what does not learn
    return made


def audio_video__clip() -> Recipe:
    """CLIP between the sound and the frames of one time of a video file, another each time.

    multissl train audio_video --data videos
    """
    return _recipe({"audio": _sound(), "video": _film()}, _clip(view="global"), batch_size=32)


def audio_video__cav_mae() -> Recipe:
    """CAV-MAE: the sound and the frames of one time, 75 % of each hidden, are rebuilt together and find each other.

    multissl train audio_video/cav_mae --data videos
    """
    objective = CAVMAE.Config(heads=4, decoder=Decoder.Config(dim=64, depth=2, heads=4))
    made = _recipe({"audio": _sound(), "video": _film()}, objective, batch_size=32)
    # what is hidden must not be seen through the convolutions before it
    made.encoders["audio"] = made.encoders["audio"].replace(conv_stem=False)
    return made


def audio_text__clip() -> Recipe:
    """CLIP between sounds and captions.

    multissl train audio_text --data sounds.csv
    """
    return _recipe({"audio": _sound(), "text": _words()})


def video_text__clip() -> Recipe:
    """CLIP between clips and captions.

    multissl train video_text --data clips.tar
    """
    video = Video.Config(frames=8, size=64, local_size=32, patch=16, stride=2)
    return _recipe({"video": video, "text": _words()}, batch_size=32)


def image_audio__clip() -> Recipe:
    """CLIP between pictures and sounds of one class, drawn anew each time.

    multissl train image_audio --modality.members.image.data digits --modality.members.audio.data spoken
    """
    return _recipe({"image": _picture(), "audio": _sound()}, join="label")


def tabular_image__clip() -> Recipe:
    """CLIP between the cells of a row and the picture that it names.

    multissl train tabular_image --data rows.csv
    """
    return _recipe({"tabular": Tabular.Config(), "image": _picture()})


def image_text_audio__clip() -> Recipe:
    """CLIP between pictures and sounds of one digit and its word, all three at once; the word is the label, said so.

    multissl train image_text_audio --modality.members.image.data digits --modality.members.audio.data spoken
    """
    return _recipe(
        {"image": _picture(), "audio": _sound(), "text": _words()},
        join="label",
        prompts={"text": ("{}", "the digit {}", "a number called {}", "{} is what it says")},
        names={str(i): name for i, name in enumerate(DIGITS)},
    )


def _clip(**options: Any) -> CLIP.Config:
    return CLIP.Config(projector=_space(), **options)


def _space() -> MLPHead.Config:
    """A linear map into 64 numbers."""
    return MLPHead.Config(out=64, layers=1, norm="none")


def _picture() -> Image.Config:
    return Image.Config(size=32, local_size=16, patch=4, global_scale=(0.5, 1.0))


def _sound() -> Audio.Config:
    return Audio.Config(frames=round(100 * SECONDS), local_frames=80, mels=64)


def _film() -> Video.Config:
    return Video.Config(frames=8, size=64, local_size=32, patch=16, seconds=SECONDS)


def _words() -> Text.Config:
    return Text.Config(length=16, local_length=8, pack=False, vocab=400)


def _image_text(objective: Objective.Config) -> Recipe:
    made = _recipe({"image": _picture(), "text": _words()}, objective).replace(steps=1200)
    made.optim = made.optim.replace(lr=2e-3)  # captions of the built-in pairs are many, so is what they tell
    # the motifs are the classes of the built-in pairs; data without classes is measured by retrieval alone
    made.evals["zero_shot"] = ZeroShot.Config(templates=("{}", "a picture of {}", "{} in two colours"))
    return made


def _recipe(
    members: dict[str, Modality.Config],
    objective: Objective.Config | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Recipe:
    """Towers of 96 numbers: three blocks for what is seen or heard, two for words and cells."""
    evals: dict[str, Evaluator.Config] = {
        "retrieval": Retrieval.Config(every=200),
        "knn": KNN.Config(bank=2000),
        "collapse": Collapse.Config(every=200),
    }
    # faster, all embeddings end in one point where few things are told apart: classes, one speaker's films
    return Recipe(
        modality=Paired.Config(members=members, **options),
        encoders={name: _tower(member) for name, member in members.items()},
        objective=objective or _clip(),
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
