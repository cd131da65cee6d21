"""Classes of a scored split that training lacks: no model can name them, and they count as not found.

Shapes: S training samples, Q queries.
"""

from __future__ import annotations

from torch import Tensor


def unseen_classes(labels: Tensor, truth: Tensor, split: str) -> str:
    """Return what is to be said of classes in truth [Q] that labels [S] lack; nothing where there are none."""
    missing = sorted(set(truth.tolist()) - set(labels.tolist()))
    if not missing:
        return ""
    count = sum(int((truth == label).sum()) for label in missing)
    return (
        f"{count} of {len(truth)} labeled samples of the {split} split are of classes that training lacks "
        f"({', '.join(map(str, missing[:10]))}): they count as not found"
    )
