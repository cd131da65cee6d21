"""Recipes for pictures and sounds of one class."""

from __future__ import annotations

from multissl.configs.shared.pairs import paired, picture, sound
from multissl.layers.frozen import FrozenTeacher
from multissl.layers.heads import MLPHead
from multissl.objectives.distill import Distill
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between pictures and sounds of one class, drawn anew each time.

    Command: multissl train image_audio --modality.members.image.data digits --modality.members.audio.data spoken
    Size: 600 steps of 64, transformer 96 x 3 and transformer 96 x 3; minutes of one processor core.
    Measured: recall@1 88.9 % on test digits, spoken and written (chance 10.1), with `--steps 400`, 4 minutes.
    """
    return paired({"image": picture(), "audio": sound()}, join="label")


def distill() -> Recipe:
    """A student of sounds has the features that a frozen teacher of pictures has of the same samples (SoundNet).

    Command: multissl train image_audio/distill --modality.members.image.data digits --modality.members.audio.data words
    Size: 600 steps of 64, transformer 96 x 3 and transformer 96 x 3; minutes of one processor core.
    Measured: unmeasured

    The teacher is what --objective.teachers.image.weights names, a run's folder or published weights; without it an
    untrained network, from which little is learned. The run ships the student of sounds and the teacher.
    """
    objective = Distill.Config(
        teachers={"image": FrozenTeacher.Config(stream="image")},
        students=("audio",),
        tokens_weight=0.0,
        head=MLPHead.Config(hidden=256, layers=2, norm="layer"),
    )
    made = paired({"image": picture(), "audio": sound()}, objective, join="label")
    del made.evals["retrieval"]  # the student has no space that it shares with the teacher
    return made
