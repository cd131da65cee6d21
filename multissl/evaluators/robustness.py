"""Errors under corruptions, beside those of AlexNet: mCE (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Accuracies are handed in: those on the original set, as the corruptions of `corrupting` are not all the original's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STANDARD = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The corruptions of the published figure; the four others of ImageNet-C make another number."""


def mean_corruption_error(
    accuracy: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]
) -> float:
    """Return the mean over corruptions of the error beside the reference's error, a ratio.

    Both hold a value for each severity from the first on, accuracies and errors from 0 to 1. Severities that were not
    measured are left out of both, corruptions that were not measured of the mean.
    """
    ratios = []
    for name, values in accuracy.items():
        theirs = reference[name][: len(values)]
        ratios.append(sum(1 - value for value in values) / sum(theirs))
    return sum(ratios) / len(ratios)
