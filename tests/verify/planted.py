"""Run as one of several processes: the checks of `multissl verify` with one bug at a time; writes what they find."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from multissl.contract.learning import Losses
from multissl.engine import checkpoint, chunked
from multissl.engine.learner import Learner
from multissl.parallel import collectives
from multissl.parallel.ranks import world
from multissl.parallel.sharding import local
from multissl.verify import traces
from multissl.verify.cases import cases
from multissl.verify.checks import CHECKS, run_checks


class Bug(NamedTuple):
    """What is broken, in which objective it is looked for, and the column that has to turn red."""

    plant: Callable[[], contextlib.AbstractContextManager[Any]]
    objective: str
    column: str


@contextlib.contextmanager
def collective(name: str, wrong: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put another function in the place of a collective wherever the package holds it."""
    right = getattr(collectives, name)
    holders = [
        m for n, m in [*sys.modules.items()] if n.startswith("multissl.") and vars(m).get(name) is right
    ]
    with contextlib.ExitStack() as stack:
        for holder in holders:
            if not holder.__name__.startswith("multissl.verify"):
                stack.enter_context(mock.patch.object(holder, name, wrong))
        yield


def without_gradient(name: str) -> Callable[[Tensor], Tensor]:
    right = getattr(collectives, name)
    return lambda x: right(x).detach() if world() > 1 else right(x)


def doubled_shards(self: Learner, losses: Any, right: Any = Learner.backward) -> None:
    """Twice the gradient where it is a shard."""
    right(self, losses)
    for parameter in self.parameters():
        if parameter.grad is not None and local(parameter.grad) is not parameter.grad:
            parameter.grad *= 2


def unread(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checkpoint that is opened and not read."""
    return state


def unread_alone(state: dict[str, Any], folder: Path, right: Any = checkpoint.load_state) -> dict[str, Any]:
    """A checkpoint that one process does not read."""
    return right(state, folder) if world() > 1 else state


def without_moments(
    state: dict[str, Any], folder: Path, right: Any = checkpoint.load_state
) -> dict[str, Any]:
    """A checkpoint whose moments of the optimizer are lost."""
    read = right(state, folder)
    return {n: v * 0 if n.startswith(checkpoint.STATES) else v for n, v in read.items()}


def narrow(*args: Any, right: Any = Losses.weigh) -> Losses:
    """A sum of terms in half precision, where autocast is on."""
    losses = right(*args)
    return replace(losses, total=losses.total.bfloat16()) if torch.is_autocast_enabled("cpu") else losses


def other_draws() -> contextlib.AbstractContextManager[Any]:
    count, right = itertools.count(), torch.manual_seed
    return mock.patch.object(traces.torch, "manual_seed", side_effect=lambda _: right(next(count)))


BUGS = {
    "gather without its gradient": Bug(lambda: collective("gather", without_gradient("gather")), "vicreg", "ranks"),
    "negatives without their gradient": Bug(
        lambda: collective("gather", without_gradient("gather")), "infonce", "ranks"
    ),
    "a sum of this rank alone": Bug(lambda: collective("sum_ranks", lambda x: x * world()), "barlow", "ranks"),
    "a sum without its gradient": Bug(
        lambda: collective("sum_ranks", without_gradient("sum_ranks")), "msn", "ranks"
    ),
    "keys of this rank alone": Bug(
        lambda: collective("gather", lambda x: torch.cat([x] * world())), "moco", "ranks"
    ),
    "shards with twice the gradient": Bug(
        lambda: mock.patch.object(Learner, "backward", doubled_shards), "vicreg", "sharded"
    ),
    "chunks that draw anew": Bug(
        lambda: mock.patch.object(chunked.replayed, "__enter__", lambda self: setattr(self, "before", self.state)),
        "vicreg", "chunked",
    ),
    "moments that are not restored": Bug(
        lambda: mock.patch.object(checkpoint, "load_state", without_moments), "vicreg", "resumed"
    ),
    "weights that are not restored": Bug(
        lambda: mock.patch.object(checkpoint, "load_state", unread), "byol", "resumed"
    ),
    "weights that are not restored on one process": Bug(
        lambda: mock.patch.object(checkpoint, "load_state", unread_alone), "vicreg", "moved"
    ),
    "draws that do not depend on the step": Bug(other_draws, "dino", "repeated"),
    "a loss in half precision": Bug(lambda: mock.patch.object(Losses, "weigh", narrow), "vicreg", "half"),
}  # fmt: skip


WHOLE = (
    "none", "shards with twice the gradient", "weights that are not restored on one process",
    "a loss in half precision",
)  # fmt: skip
"""Bugs beside which every column is looked at; beside the others the one that has to turn red."""


def main() -> None:
    """Write the red columns of every bug, and of none, to a file."""
    folder, target, ports = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # each group of ranks has a store of its own
    device, red = torch.device("cpu"), {}
    for number, (name, bug) in enumerate({"none": Bug(contextlib.nullcontext, "vicreg", ""), **BUGS}.items()):
        chosen, _ = cases([bug.objective])
        os.environ["MASTER_PORT"] = ports[number]
        columns = CHECKS if name in WHOLE else {bug.column: CHECKS[bug.column]}
        with bug.plant(), mock.patch.dict(CHECKS, {**columns}, clear=True):
            (it,) = run_checks(chosen, device, folder / str(number), lambda _: None)
        red[name] = {column: problem for column, problem in it.problems.items() if problem}
    if os.environ["RANK"] == "0":
        target.write_text(json.dumps(red))


if __name__ == "__main__":
    main()
