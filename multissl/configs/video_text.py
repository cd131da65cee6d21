"""Recipes for clips and their captions."""

from __future__ import annotations

from multissl.configs.shared.pairs import paired, words
from multissl.modalities.video.adapter import Video
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between clips and captions.

    Command: multissl train video_text --data clips.tar
    Size: 600 steps of 32, transformer 96 x 3 and transformer 96 x 2; minutes on two processor cores.
    Measured: unmeasured
    """
    video = Video.Config(frames=8, size=64, local_size=32, patch=16, stride=2)
    return paired({"video": video, "text": words()}, batch_size=32)
