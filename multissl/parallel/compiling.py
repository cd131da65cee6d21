"""Where torch.compile runs: in training steps on CUDA, unless a recipe says otherwise; on a CPU where one says so.

Blocks of encoders and heads are compiled one by one (`sharding`). What lies between them, losses over prototypes and
views, is a few functions of tensors that are each compiled whole: `Whole`. Without a compiler they run as written.
State: the choice of the run that this process makes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

log = logging.getLogger("multissl")
P = ParamSpec("P")
R = TypeVar("R")


class _Choice:
    """What the run at hand says about compilation; None leaves it to the device."""

    wanted: bool | None = None


def choose(wanted: bool | None) -> None:
    """Set what this process compiles: everything it can, nothing, or None: what runs on CUDA."""
    _Choice.wanted = wanted


def wants(device: torch.device) -> bool:
    """Return whether what runs on a device is to be compiled, by the run's choice."""
    return device.type == "cuda" if _Choice.wanted is None else _Choice.wanted


def compiles(device: torch.device) -> bool:
    """Return whether what runs on a device is compiled: it is to be, and a compiler works."""
    return wants(device) and not trouble(device.type)


@functools.cache
def trouble(kind: str) -> str:
    """Return why nothing can be compiled for a kind of device, such as a missing compiler; empty where it works.

    The first call compiles a function of one operation, which takes seconds.
    """
    try:
        torch.compile(_probe, fullgraph=True)(torch.zeros(2, device=kind))
    except Exception as error:
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Whole(Generic[P, R]):
    """A function of tensors that compiles as one graph; numbers that change between steps come as tensors, too.

    A call runs compiled; whoever calls it has asked `compiles` first, and has a form for where that says no. `options`
    are inductor's.
    """

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        self.function, self.options = function, options
        self._full = False

    @functools.cached_property
    def _compiled(self) -> Callable[P, R]:
        compiled: Any = torch.compile(
            self.function, fullgraph=True, dynamic=False, options=self.options or None
        )  # imports dynamo: a second
        return compiled

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run compiled; as written where dynamo, which keeps 8 variants of a function, has no place for one more."""
        compiled = self._compiled
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            return compiled(*args, **kwargs)
        except FailOnRecompileLimitHit:
            if not self._full:
                name, limit = self.function.__name__, "torch._dynamo.config.recompile_limit"
                log.warning("%s runs uncompiled for further shapes: it has had as many as %s", name, limit)
            self._full = True
            return self.function(*args, **kwargs)


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Run what is compiled as it is written, for a `with`; what is compiled stays and is used again afterwards.

    Dynamo keeps 8 variants of a block, one for each shape and mode. Shapes of an evaluation would take them, and steps
    that find none left run uncompiled from then on, without a word.
    """
    return torch.compiler.set_stance("force_eager")
