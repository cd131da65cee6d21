"""How long views of recordings should be, and how that is said.

A view has three fifths of the usual recording, so that two segments of one differ and still share something, and no
more than AudioSet's 10.24 s.
State: none.
"""

from __future__ import annotations

from typing import Any

from multissl.contract.data import Sample, Samples
from multissl.modalities.audio.files import seconds_of
from multissl.modalities.sizes import usual_extent

LONGEST = 1024
"""Frames of 10 ms of the longest views that are chosen."""


def sizes_for(data: Samples, cfg: Any) -> tuple[dict[str, Any], str]:
    """Return the lengths that suit training recordings, those that `cfg` says as they are, and a line on both."""

    def read(sample: Sample) -> tuple[float]:
        return (seconds_of(sample, cfg.rate),)

    (seconds,), count = usual_extent(data, read, "recordings", "frames")
    patch = cfg.patch[0]
    frames = cfg.frames or max(min(round(100 * seconds) * 3 // 5, LONGEST) // patch, 1) * patch
    local = cfg.local_frames or max(frames // 2 // patch, 1) * patch
    line = (
        f"views of {frames / 100:g} s and local views of {local / 100:g} s for recordings of {seconds:.3g} s (median "
        f"of {count}): --modality.frames and --modality.local_frames say otherwise; shorter views train faster"
    )
    return {"frames": frames, "local_frames": local}, line


def check_sizes(cfg: Any) -> None:
    """Raise a ValueError where lengths, bands, tokens and masks do not fit each other."""
    for name, axis in (("frames", 0), ("local_frames", 0), ("mels", 1)):
        size, patch, stride = getattr(cfg, name), cfg.patch[axis], cfg.stride[axis]
        size = size or patch  # what the data is to say is a multiple
        if not 0 <= stride <= patch or (stride > 0) != (max(cfg.stride) > 0):
            raise ValueError(
                f"modality.stride={cfg.stride}: want 0 0, or 1 or more of both up to patch={cfg.patch}"
            )
        if patch < 1 or size < patch or (size % patch and not stride):
            near = max(size // max(patch, 1), 1) * max(patch, 1)
            raise ValueError(f"modality.{name}={size}: want a multiple of patch={cfg.patch}, such as {near}")
    if cfg.mask in ("block", "frequency", "time_frequency") and cfg.grid(cfg.patch[0])[1] < 2:
        raise ValueError(
            f"modality.mask={cfg.mask}: tokens of the full band, patch={cfg.patch}, have no frequency to"
            " hide; set modality.mask=time or random"
        )
