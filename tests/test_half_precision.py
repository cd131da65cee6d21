"""Every registered objective in half precision: bf16 features give the loss of fp32 ones, and no fragile op is half.

Features are rounded to bf16 by a stand-in for the encoders, and heads run under bf16 autocast, as they do in mixed
precision. A mode that sees every torch function notes the precision in which logs, softmaxes, norms and
factorizations run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from multissl import registry
from multissl.contract.data import Views
from multissl.contract.encoder import EncodeFunction
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.plans import Masking
from multissl.engine.batches import StepBatches
from tests.test_exact import BATCH, Case, fitting, make

FRAGILE = {
    "log", "log2", "log1p", "exp", "softmax", "log_softmax", "logsumexp", "softplus", "logsigmoid", "normalize",
    "cosine_similarity", "cross_entropy", "binary_cross_entropy_with_logits", "layer_norm", "batch_norm", "cholesky",
    "cholesky_ex", "solve_triangular", "svd", "svdvals", "qr", "vector_norm", "norm", "std", "var", "cdist", "pow",
    "rsqrt",
}  # fmt: skip
"""Functions that lose too much in half precision. Inside networks (a teacher, a decoder) autocast decides, so what
objectives and heads call is noted, but for torch's own norm layers, which add up in fp32."""
TOLERANCE = {"nnclr": 5e-2, "barlow": 4e-2}
"""Relative, where it is not 2e-2: the heads' rounding meets a low temperature and a nearest neighbor, or squares."""
PACKAGE = Path(registry.__file__).parent
PROGRESS = Progress(step=0, total=10, epoch_steps=1)


class Rounded(EncodeFunction):
    """Encoders whose features are rounded to bf16: kept so, or widened again for the reference."""

    def __init__(self, encoders: EncodeFunction, dtype: torch.dtype) -> None:
        self.encoders, self.dtype = encoders, dtype

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        with torch.autocast("cpu", enabled=False):
            found = self.encoders.encode(views, masking, inner)
        return [
            dataclasses.replace(
                f, pooled=self._round(f.pooled), tokens=self._round(f.tokens),
                inner=tuple(self._round(t) for t in f.inner),
            )
            for f in found
        ]  # fmt: skip

    def _round(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(self.dtype)


def by_a_loss() -> bool:
    """Whether the function at hand is called by an objective, by a head, or from outside the package."""
    frame: FrameType | None = sys._getframe(2)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.parts[-3:-1] == ("nn", "modules") and path.stem in ("normalization", "batchnorm"):
            return False
        if path.is_relative_to(PACKAGE):
            return path.parent.name == "objectives" or path.stem == "heads"
        frame = frame.f_back
    return True


class Precisions(TorchFunctionMode):
    """Notes fragile functions called on half precision, with the file that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.half: set[str] = set()
        self.seen: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name in FRAGILE and tensors:
            self.seen.add(name)
            if any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors) and by_a_loss():
                self.half.add(name)
        return func(*args, **(kwargs or {}))


def cases() -> list[Case]:
    return [Case(name, modality) for name in registry.names("objectives") for modality in fitting(name)]


def run(case: Case, half: bool) -> tuple[Losses, Precisions]:
    """The loss of a case on features rounded to bf16, with heads in bf16 and features left so, or all in fp32."""
    try:
        learner, modality = make(case)
    except ValueError as error:
        pytest.skip(str(error))
    learner.float().train()
    objective = learner.objective
    data = StepBatches(modality, objective.plans(), BATCH, 0, 0, 1, final=True)
    batch = data[0][0]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), Precisions() as mode:
        losses = objective(
            Rounded(learner.encoders, torch.bfloat16 if half else torch.float32), batch, PROGRESS
        )
    return losses, mode


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.objective}-{c.modality}")
def test_half_precision_features_give_the_loss_of_wide_ones(case: Case) -> None:
    right, _ = run(case, half=False)
    found, mode = run(case, half=True)
    assert found.total.dtype == torch.float32
    assert all(v.dtype == torch.float32 for v in found.terms.values())
    torch.testing.assert_close(
        found.total, right.total, rtol=TOLERANCE.get(case.objective, 2e-2), atol=2e-2, check_dtype=False
    )
    assert not mode.half, f"in half precision: {sorted(mode.half)}"


def test_the_mode_notices_half_precision() -> None:
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    with Precisions() as mode:
        torch.nn.functional.normalize(x)
        x.softmax(-1)
        x.float().logsumexp(-1)
    assert mode.half == {"normalize", "softmax"}
    assert "logsumexp" in mode.seen
