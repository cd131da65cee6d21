"""How many kernels and copies a part of a step is on a GPU, counted without one.

    python -m benchmarks.launches            # prints the table and what differs from the stored one
    python -m benchmarks.launches --write    # stores it in benchmarks/launches.json, which a test compares

The rule. A part runs once on tensors of the sizes of a real step, which have a device and no content.

- A kernel is an operation that runs eagerly on the device and makes or changes a tensor (views and allocations are
  none), one call for a list of tensors (`torch._foreach_*`, fused AdamW of a group), or a kernel that inductor makes of
  what is compiled: the nodes that its scheduler has after fusing for an H100, with one for each matrix product and
  attention that it leaves to a library. Whatever is several kernels inside is one here, as attention's backward is.
- Compiled are functions (`Whole`), and on CUDA every block and head by itself, forward and backward: the two graphs
  that inductor is handed, with what it keeps from the one for the other. Between them operations are eager.
- A copy goes from host to device. It blocks where it is not `non_blocking`, or its source is not page-locked: so does
  `torch.tensor(..., device=)`. What the host reads is not counted.
- Bytes are those that kernels read and write, by the sizes of their tensors; of what is compiled, by inductor's own
  account of the buffers that are left after fusing. What an index picks is counted, not what it picks from.

Constants that are copied once in a process and the optimizer's state are there already: the part runs once before it is
counted. Rows, all of 64 images of DINOv2's ViT-S/14 (2 x 224 and 8 x 98 pixels): "batch" is a raw batch on its way to
the device (two pixel tensors, everything else in one copy), "views" what is made of it there. "step" is all that the
trainer does with the views: the buffers' copies, forward and backward pass of teacher, student and losses in bf16,
clipping, the check for finite numbers, AdamW, the teacher's move, sums for the log; one process, no collectives.
"logged step" is one of those, every `log_every`, that describe their targets. Limits of the counts, whatever the
machine, are `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.lowering import GPU as DEVICE
from benchmarks.lowering import META, Units, lowered
from benchmarks.whole_step import prepared, step, without_content
from multissl import devices
from multissl.configs.image import dino
from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.parallel import compiling
from multissl.parallel.compiling import Whole
from multissl.parallel.sharding import Parallel
from multissl.random import RowRandom

STORED = Path(__file__).with_suffix(".json")
BATCH = 64
LIMITS = {
    "batch": {"copies": 3, "blocking": 0},
    "views": {"kernels": 20, "copies": 2, "blocking": 0},
    "step": {"kernels": 1500, "copies": 0, "blocking": 0},
    "logged step": {"kernels": 1500, "copies": 0, "blocking": 0},
}
"""The most that a row may have."""
ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "detach",
}
PICKING = {"index", "index_select", "gather", "embedding"}


@dataclass(frozen=True)
class Launches:
    """What a part of a step asks of a device."""

    kernels: int
    copies: int
    blocking: int
    bytes: int


def _there(tensor: Tensor) -> bool:
    """Return whether a tensor stands for one on the GPU."""
    return tensor.device.type != "cpu"


class Counter(TorchDispatchMode):
    """Counts, under a `FakeTensorMode`, what operations ask of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.copies = self.blocking = self.bytes = 0
        self.paused = False
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.lstrip("_")
        if name == "is_pinned":
            return False
        if name == "pin_memory":  # would ask for a GPU
            self._pinned.append(args[0])
            return args[0]
        made = func(*args, **kwargs)
        if not self.paused:
            self._note(func, name, args, kwargs, made)
        return made

    def _note(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        read = {option: value for option, value in kwargs.items() if option != "out"}
        inputs = [t for t in tree_leaves((args, read)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        if not outputs and func._schema.is_mutable:  # a list of tensors that is changed in place
            outputs = inputs
        if func.is_view or name in ALLOCATIONS or not any(_there(t) for t in outputs):
            return
        if name in ("to_copy", "copy_") and not _there(inputs[-1]):
            self.copies += 1
            asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
            self.blocking += not (asynchronous and any(inputs[-1] is t for t in self._pinned))
            return
        self.kernels += 1
        self.bytes += sum(t.nbytes for t in (outputs if name in PICKING else inputs) + outputs)

    def add(self, kernels: int, size: int) -> None:
        """Count kernels that no operation shows."""
        self.kernels, self.bytes = self.kernels + kernels, self.bytes + size

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Count no operation, for a `with`."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def launches(self) -> Launches:
        """Return what was counted since this was asked last."""
        counted = Launches(self.kernels, self.copies, self.blocking, self.bytes)
        self.kernels = self.copies = self.blocking = self.bytes = 0
        return counted


def count(function: Callable[[], Any], backward: bool = False) -> Launches:
    """Return what the second run of a function asks of a device; it makes its tensors itself.

    They lie on `DEVICE`, or with `backward` on `META`.
    """

    def all_of_it() -> Iterator[str]:
        function()
        yield "all"

    if backward:
        return count_parts(lambda: all_of_it)["all"]
    with FakeTensorMode():
        return count_parts(lambda: all_of_it)["all"]


def count_parts(prepare: Callable[[], Callable[[], Iterator[str]]]) -> dict[str, Launches]:
    """Return what each part of a second run asks of a device, by the name that is yielded after it.

    `prepare` returns what runs, and is not counted itself.
    """
    counter = Counter()
    parts: dict[str, Launches] = {}
    try:
        with _told(counter):
            with counter:
                run = prepare()
            for _ in range(2):  # the first one copies constants and makes the optimizer's state
                counter.launches()
                with counter:
                    parts = {name: counter.launches() for name in run()}
    finally:
        devices.made_once.cache_clear()  # it holds tensors without content
    return parts


@contextmanager
def _told(counter: Counter) -> Iterator[None]:
    """Let a compiler be there, and what it compiles tell a counter what it costs."""
    units = Units(counter.add, counter.silent)

    def call(whole: Whole[..., Any], *args: Any, **kwargs: Any) -> Any:
        with counter.silent():
            counter.add(*lowered(whole, args, kwargs))
            return whole.function(*args, **kwargs)

    def wants(device: torch.device) -> bool:
        return device.type != "cpu" and compiling._Choice.wanted is not False

    with (
        mock.patch.object(Whole, "__call__", call),
        mock.patch.object(nn.Module, "compile", lambda module, **_options: units.compile(module)),
        mock.patch.object(compiling, "wants", wants),
        mock.patch.object(compiling, "trouble", return_value=""),
    ):
        yield


def raw_batch() -> dict[str, Any]:
    """Return what a worker makes of `BATCH` images for DINOv2, as it leaves the loader: in page-locked memory."""
    tokens, hidden = (224 // 14) ** 2, 76 * BATCH
    mask = Mask(
        hidden=torch.zeros(2 * BATCH, tokens, dtype=torch.bool),
        index=torch.zeros(hidden, dtype=torch.int64),
        weight=torch.zeros(hidden),
    )
    pictures = {
        role: torch.zeros(views * BATCH, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        for role, views, side in (("global", 2, 224), ("local", 8, 98))
    }
    raw = {**pictures, "masks": {"0": mask}, "sample_id": torch.zeros(BATCH, dtype=torch.int64)}
    return tree_map_only(Tensor, lambda tensor: tensor.pin_memory(), {"image": raw})


def batch_to_device() -> dict[str, Any]:
    """Return a raw batch on the device, as training has it."""
    return devices.copied(raw_batch(), DEVICE)


def raw_batch_on(device: torch.device) -> dict[str, Any]:
    """Return a raw batch that has arrived on a device."""
    return tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device), raw_batch()
    )


def views() -> None:
    """Make the views of a step."""
    recipe = dino.dinov2_vits14()
    modality = recipe.modality.build()
    assert isinstance(modality, Image)
    plan = ViewPlan(num_global=2, num_local=8, mask_ratio=(0.1, 0.5), mask_share=0.5)
    modality.views(raw_batch_on(DEVICE), {"image": plan}, RowRandom((0, 0), 0, BATCH, BATCH, DEVICE))


def step_parts(logged: bool) -> dict[str, Launches]:
    """Return the counts of the parts of a step after the views."""

    def prepare() -> Callable[[], Iterator[str]]:
        recipe = dino.dinov2_vits14().replace(batch_size=BATCH, evals={}, parallel=Parallel(precision="bf16"))
        it = prepared(recipe, raw_batch_on(META), RowRandom((0, 0), 0, BATCH, BATCH, META), META)
        return lambda: step(it, logged)

    with without_content():
        return count_parts(prepare)


ROWS: dict[str, Callable[[], Any]] = {"batch": batch_to_device, "views": views}
STEPS = {"step": False, "logged step": True}


def table() -> dict[str, Any]:
    """Return the counts of all rows and of the parts of steps, with the release of torch that they hold for."""
    release = ".".join(torch.__version__.split(".")[:2])
    rows = {name: asdict(count(function)) for name, function in ROWS.items()}
    parts: dict[str, dict[str, int]] = {}
    for name, logged in STEPS.items():
        counted = step_parts(logged)
        parts[name] = {part: each.kernels for part, each in counted.items()}
        rows[name] = {
            what.name: sum(getattr(each, what.name) for each in counted.values()) for what in fields(Launches)
        }
    return {"torch": release, "rows": rows, "kernels of parts": parts}


def beyond(rows: dict[str, dict[str, int]]) -> list[str]:
    """Return a line for every count above its limit."""
    return [
        f"{name}: {row[what]} {what}, at most {limit} are allowed"
        for name, row in rows.items()
        for what, limit in LIMITS[name].items()
        if row[what] > limit
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the table")
    options = parser.parse_args()
    counted = table()
    print(f"torch {counted['torch']}")
    for name, row in counted["rows"].items():
        print(f"{name}: " + ", ".join(f"{number} {what}" for what, number in row.items()))
    for name, parts in counted["kernels of parts"].items():
        print(f"kernels of {name}: " + ", ".join(f"{part} {number}" for part, number in parts.items()))
    print("\n".join(beyond(counted["rows"])))
    if options.write:
        STORED.write_text(json.dumps(counted, indent=1) + "\n")
    elif counted != json.loads(STORED.read_text()):
        print(f"differs from {STORED.name}: {json.loads(STORED.read_text())}")


if __name__ == "__main__":
    main()
