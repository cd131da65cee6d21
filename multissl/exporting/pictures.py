"""What targets for pictures share."""

from __future__ import annotations

from torch import Tensor

from multissl.exporting.base import Subject
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.preparation import WHITE

COLORS = 3


def refused(target: str, reason: str) -> ValueError:
    """Return the error for what a target cannot hold, with those that can."""
    return ValueError(f"--to {target}: {reason}; want --to safetensors, onnx or torch.export, which hold it")


def check_pictures(target: str, subject: Subject) -> None:
    """Raise a ValueError unless the stream is one of color pictures, the only one of its run."""
    modality = subject.model.modality
    if not isinstance(modality, Image):
        raise refused(target, f"it holds encoders of pictures alone, and {subject.stream} is none")
    if modality.cfg.channels != COLORS:
        raise refused(
            target, f"its processors read {COLORS} channels, this run's pictures have {modality.cfg.channels}"
        )


def statistics_of(modality: Image) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of the channels."""
    return modality.statistics()


def whole_number(x: Tensor) -> Tensor:
    """Return pictures with values 0 to 1 as bytes."""
    return (x * WHITE).round().byte()
