"""Whole parameters on every rank: a half-precision working copy of them, and one message of gradients.

The parameters of a module stay what optimizer, teacher and checkpoints see: masters, fp32, by their names. While the
module computes, working parameters take their places: in half precision views of one flat buffer, which one cast fills
from the flat buffer that the masters lie in; in full precision the masters' own numbers. Their gradients are leaves of
their own, so what a backward pass adds is known: it is widened to fp32, averaged over ranks in one message, and added
to the gradients of the masters, however many backward passes a step has.
State: the working copy; nothing of it is saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from multissl.parallel.ranks import world

ALIGNMENT = 64
"""Numbers to a multiple of which every parameter starts in a flat buffer: 128 bytes of half precision."""


@dataclass(slots=True)
class Pair:
    """A parameter that others see, and the one that computes in its place."""

    master: nn.Parameter
    working: nn.Parameter
    places: list[tuple[nn.Module, str]]
    """The modules that hold it, and what they call it."""

    def put(self, parameter: nn.Parameter) -> None:
        """Let modules hold one of the two."""
        for module, name in self.places:
            if type(module).__setattr__ is nn.Module.__setattr__:
                module._parameters[name] = parameter
            else:  # recurrent networks keep a list of their weights beside
                setattr(module, name, parameter)


class Replica:
    """Working parameters of a module on this rank, in place while it computes.

    `half` names the precision of those that compute in less than fp32, None: of none. On one rank in full precision
    there is nothing to do.
    """

    def __init__(
        self, module: nn.Module, half: torch.dtype | None, exempt: Sequence[nn.Parameter] = ()
    ) -> None:
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    places.setdefault(parameter, []).append((owner, name))
        kept = {id(p) for p in exempt}
        halved = [p for p in places if half and id(p) not in kept and p.is_floating_point()]
        working: dict[nn.Parameter, nn.Parameter] = {}
        self.flat: list[tuple[Tensor, Tensor]] = []
        """Flat buffers of masters and of their working copies: of what trains, and of what does not."""
        for trains in (True, False):
            some = [p for p in halved if p.requires_grad == trains]
            if half and some:
                working |= self._flatten(some, half)
        for p in places:
            if world() > 1 and p.requires_grad and p not in working:
                working[p] = nn.Parameter(p.detach())
        self.pairs = [Pair(p, w, places[p]) for p, w in working.items()]
        self.depth = 0

    def _flatten(
        self, masters: Sequence[nn.Parameter], half: torch.dtype
    ) -> dict[nn.Parameter, nn.Parameter]:
        """Lay masters in one buffer, and return working parameters that lie in another one in the same order."""
        starts, end = [], 0
        for p in masters:
            starts.append(end)
            end += -(-p.numel() // ALIGNMENT) * ALIGNMENT
        wide = torch.zeros(end, dtype=masters[0].dtype, device=masters[0].device)
        narrow = torch.zeros(end, dtype=half, device=masters[0].device)
        working = {}
        for p, start in zip(masters, starts, strict=True):
            mine, theirs = (flat[start : start + p.numel()].view(p.shape) for flat in (wide, narrow))
            mine.copy_(p.detach())
            p.data = mine
            working[p] = nn.Parameter(theirs, requires_grad=p.requires_grad)
        self.flat.append((wide, narrow))
        return working

    @torch.no_grad()
    def enter(self, cast: bool = True) -> None:
        """Cast the masters as they are now, and put the working parameters in place; calls may nest.

        A backward pass enters without a cast: it needs the numbers of its forward pass.
        """
        if self.depth == 0:
            for wide, narrow in self.flat if cast else ():
                narrow.copy_(wide)
            for pair in self.pairs:
                pair.put(pair.working)
        self.depth += 1

    def leave(self) -> None:
        """Put the masters back, with what backward passes have added since."""
        self.depth -= 1
        if self.depth == 0:
            self.collect()
            for pair in self.pairs:
                pair.put(pair.master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of working parameters, averaged over ranks, to those of their masters."""
        some = [p for p in self.pairs if p.working.grad is not None]
        if not some:
            return
        grads = [p.working.grad for p in some if p.working.grad is not None]
        sizes = [g.numel() for g in grads]
        flat = torch.empty(sum(sizes), dtype=some[0].master.dtype, device=grads[0].device)
        parts = [part.view(g.shape) for part, g in zip(flat.split(sizes), grads, strict=True)]
        torch._foreach_copy_(parts, grads)  # pyright: ignore[reportPrivateImportUsage]
        if world() > 1:
            dist.all_reduce(flat)
            flat /= world()
        for pair, part in zip(some, parts, strict=True):
            pair.working.grad = None
            if pair.master.grad is None:
                pair.master.grad = part
            else:
                pair.master.grad += part


def replicate(
    module: nn.Module, entry_points: Sequence[str], half: torch.dtype | None, exempt: Sequence[nn.Parameter]
) -> None:
    """Let a module compute with working parameters: in `forward`, in the methods named, and in backward passes."""
    replica = Replica(module, half, exempt)
    if not replica.pairs:
        return
    module.register_forward_pre_hook(lambda *_: replica.enter())
    module.register_forward_hook(functools.partial(_after_forward, replica), always_call=True)
    for name in entry_points:
        setattr(module, name, _within(replica, getattr(module, name)))


def _within(replica: Replica, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        replica.enter()
        try:
            return method(*args, **kwargs)
        finally:
            replica.leave()

    return run


def _after_forward(replica: Replica, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
    """Leave; a backward pass from the outputs enters again, as blocks may run in it, and leaves at its end."""
    waiting = True

    def begin(_grad: Tensor) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            replica.enter(cast=False)
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(replica.leave)

    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(begin)
    replica.leave()


def cast_inputs(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a block take its floating-point inputs in the precision of its parameters."""

    def cast(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        narrow = functools.partial(_cast, dtype)
        return tree_map_only(Tensor, narrow, args), tree_map_only(Tensor, narrow, kwargs)

    module.register_forward_pre_hook(cast, with_kwargs=True)


def _cast(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
