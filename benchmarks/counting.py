"""Kernels and bytes of a call, counted instead of timed: what a step costs on any machine, GPU or not.

The rule: an eager operation is one kernel, whose bytes are the sizes of what goes in and what comes out; a foreach call
is one kernel; a log-sum-exp is eight, with seven more passes of one fp32 number each way; views and allocations are
none. A compiled function is the kernels that inductor generates for it, with the bytes of inductor's own account, and
whatever runs between them counts as eager operations. So compiling a function counts for what it saves, and wrapping
one for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multissl.parallel.compiling import Whole

FREE = frozenset(
    {"empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view", "lift_fresh", "device"}
)
"""Operations that launch nothing, beside views."""


@dataclass
class Cost:
    """What calls have cost so far."""

    kernels: int = 0
    bytes: int = 0

    def add(self, kernels: int, size: int) -> None:
        """Add some kernels and their bytes."""
        self.kernels += kernels
        self.bytes += size


@dataclass
class Count:
    """Counts all that runs within a `with`, by the phase that `phase` names at the time."""

    phase: str = ""
    costs: dict[str, Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._exit = ExitStack()
        self._generated: dict[Any, Cost] = {}

    @property
    def total(self) -> Cost:
        """Return the cost of all phases."""
        costs = self.costs.values()
        return Cost(sum(c.kernels for c in costs), sum(c.bytes for c in costs))

    def add(self, kernels: int, size: int) -> None:
        """Add to the phase at hand."""
        self.costs.setdefault(self.phase, Cost()).add(kernels, size)

    def __enter__(self) -> Self:
        from torch._functorch import config as functorch_config
        from torch._inductor import compile_fx, config, metrics

        torch._dynamo.reset()  # inductor counts while it compiles
        run, eager = Whole.__call__, _Eager(self.add)

        def counted(whole: Whole[..., Any], *args: Any, **kwargs: Any) -> Any:
            """A compiled function: dynamo compiles it under no mode, and inductor counts where somebody logs."""
            key = whole, tuple((t.shape, t.dtype) for t in args if isinstance(t, Tensor))
            before = metrics.generated_kernel_count, metrics.num_bytes_accessed
            eager.__exit__(None, None, None)
            try:
                result = run(whole, *args, **kwargs)
            finally:
                eager.__enter__()
            now = metrics.generated_kernel_count, metrics.num_bytes_accessed
            cost = self._generated.setdefault(key, Cost(now[0] - before[0], int(now[1] - before[1])))
            self.add(cost.kernels, cost.bytes)
            return result

        enter = self._exit.enter_context
        enter(patch.object(compile_fx, "inductor_metrics_log", MagicMock()))
        enter(config.patch(fx_graph_cache=False, fx_graph_remote_cache=False))
        enter(functorch_config.patch(enable_autograd_cache=False))
        enter(patch.object(Whole, "__call__", counted))
        enter(eager)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._exit.close()


class _Eager(TorchDispatchMode):
    """Tells of every eager operation how many kernels it is, and their bytes."""

    def __init__(self, add: Callable[[int, int], None]) -> None:
        super().__init__()
        self.add = add

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in FREE:
            return result
        written = _bytes(result)
        inputs = args, {n: value for n, value in (kwargs or {}).items() if n != "out"}
        read = written if name in ("index", "index_select", "gather", "embedding") else _bytes(inputs)
        if name == "logsumexp":
            self.add(8, written + read + 20 * args[0].numel())
        else:
            self.add(1, written + read)
        return result


def _bytes(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tree) if isinstance(t, Tensor))
