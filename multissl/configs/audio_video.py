"""Recipes for the sound and the frames of video files."""

from __future__ import annotations

from multissl.configs.shared.pairs import clip_loss, film, paired, sound
from multissl.layers.decoder import Decoder
from multissl.objectives.cav_mae import CAVMAE
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between the sound and the frames of one time of a video file, another each time.

    Command: multissl train audio_video --data videos
    Size: 600 steps of 32, transformer 96 x 3 and transformer 96 x 3; minutes on two processor cores.
    Measured: no better than chance: recall@1 20.0 % of 10 candidates (chance 10, p 0.27) after 1,800 steps.
    """
    return paired({"audio": sound(), "video": film()}, clip_loss(view="global"), batch_size=32)


def cav_mae() -> Recipe:
    """CAV-MAE: sound and frames of one time, 75 % of each hidden, are rebuilt together and find each other.

    Command: multissl train audio_video/cav_mae --data videos
    Size: 600 steps of 32, transformer 96 x 3 and transformer 96 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = CAVMAE.Config(heads=4, decoder=Decoder.Config(dim=64, depth=2, heads=4))
    made = paired({"audio": sound(), "video": film()}, objective, batch_size=32)
    # what is hidden must not be seen through the convolutions before it
    made.encoders["audio"] = made.encoders["audio"].replace(conv_stem=False)
    return made
