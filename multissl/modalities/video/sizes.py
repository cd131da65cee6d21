"""How large views of videos should be and how much of their time they cover, how that is said, and what fits together.

State: none.
"""

from __future__ import annotations

from typing import Any

from multissl.contract.data import Sample, Samples
from multissl.modalities.sizes import Rule, as_pixels, sides_for, usual_extent
from multissl.modalities.video.files import frames_of, load_clip, unreadable

RULE = Rule(largest=112, patches=(16, 8, 4, 2), least=4)
"""Clips have many frames, so sides are half of those of pictures."""
STRIDE = 4
"""The largest stride that is chosen, Kinetics'."""


def sizes_for(data: Samples, cfg: Any) -> tuple[dict[str, Any], str]:
    """Return the sizes that suit training videos, of which those that `cfg` says stay, and a line that says both."""

    def read(sample: Sample) -> tuple[int, int, int, int]:
        clip = load_clip(sample)
        try:
            height, width = frames_of(clip, [0]).shape[2:]
        except Exception as error:  # decoders raise almost anything on a damaged file
            raise unreadable(sample, error) from None
        return width, height, min(width, height), len(clip.times)

    (width, height, short, frames), count = usual_extent(data, read, "videos", "size")
    sizes = sides_for(round(short), cfg, RULE)
    stride = cfg.stride or max(min(round(frames) // (2 * cfg.frames), STRIDE), 1)
    pace = f"over {cfg.seconds:g} s" if cfg.seconds else f"one in {stride}"
    line = (
        f"views of {cfg.frames} frames, {pace}, of {as_pixels(sizes['size'])} in tokens of {sizes['patch']} px, and "
        f"local views of {as_pixels(sizes['local_size'])}, for videos of {frames:g} frames of {width:g} x {height:g} "
        f"(median of {count}): --modality.frames, --modality.stride, --modality.size, --modality.patch and "
        "--modality.local_size say otherwise; smaller views train faster"
    )
    return {**sizes, "stride": stride}, line


def check_sizes(cfg: Any) -> None:
    """Raise a ValueError where views, tokens and masks do not fit each other."""
    for name, unit in (("size", "patch"), ("local_size", "patch"), ("frames", "tubelet")):
        value, step = getattr(cfg, name), getattr(cfg, unit)
        if value and step and value % step:
            below = value // step * step
            near = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(f"modality.{name}={value}: want a multiple of {unit}={step}: {near}")
    if cfg.local_frames % cfg.tubelet or cfg.local_frames > cfg.frames:
        raise ValueError(
            f"modality.local_frames={cfg.local_frames}: want 0, or a multiple of tubelet={cfg.tubelet} up to"
            f" frames={cfg.frames}"
        )
    if cfg.mask == "tube" and cfg.frames == cfg.tubelet:
        raise ValueError(
            f"modality.mask=tube with frames={cfg.frames} and tubelet={cfg.tubelet}: a tube needs 2 or more"
            " tokens in time; take more frames, or modality.mask=random"
        )
