"""How many kernels and copies a part of a step is on a GPU, counted without one.

    python -m benchmarks.launches            # prints the table and what differs from the stored one
    python -m benchmarks.launches --write    # stores it in benchmarks/launches.json, which a test compares

The rule. A part runs once on fake tensors of the sizes of a real step, which have a device (CUDA) and no content.

- A kernel is an operation that runs eagerly on the device and makes or changes a tensor (views and allocations are
  none), one call for a list of tensors (`torch._foreach_*`), or a kernel that inductor makes of a compiled function:
  the nodes that its scheduler has after fusing for an H100. An operation that is several kernels inside is one here.
- A copy goes from host to device. It blocks where it is not `non_blocking`, or its source is not page-locked: so does
  `torch.tensor(..., device=)`.
- Bytes are those that kernels read and write, by the sizes of their tensors; of a compiled function, by inductor's own
  account of the buffers that are left after fusing. What an index picks is counted, not what it picks from.

Constants that are copied once in a process are there already: the part runs once before it is counted. Rows:
"batch" is a raw batch on its way to the device (two pixel tensors, everything else in one copy), "views" what is made
of it there, both of 64 images of DINOv2's ViT-S/14 (2 x 224 and 8 x 98 pixels). Limits of the counts, whatever the
machine, are `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from multissl import devices
from multissl.configs.image import dino
from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.parallel import compiling
from multissl.parallel.compiling import Whole
from multissl.random import RowRandom

STORED = Path(__file__).with_suffix(".json")
DEVICE = torch.device("cuda", 0)
BATCH = 64
LIMITS = {"views": {"kernels": 20, "copies": 2, "blocking": 0}, "batch": {"copies": 3, "blocking": 0}}
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
H100 = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10, L2_cache_size=50 << 20,
)  # fmt: skip


@dataclass(frozen=True)
class Launches:
    """What a part of a step asks of a device."""

    kernels: int
    copies: int
    blocking: int
    bytes: int


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
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        if not outputs and func._schema.is_mutable:  # a list of tensors that is changed in place
            outputs = inputs
        if func.is_view or name in ALLOCATIONS or not any(t.is_cuda for t in outputs):
            return
        if name in ("to_copy", "copy_") and not inputs[-1].is_cuda:
            self.copies += 1
            asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
            self.blocking += not (asynchronous and any(inputs[-1] is t for t in self._pinned))
            return
        self.kernels += 1
        self.bytes += sum(t.nbytes for t in (outputs if name in PICKING else inputs) + outputs)

    def call(self, whole: Whole[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a call of a compiled function: count its kernels, and return what it does."""
        self.paused = True
        try:
            kernels, size = lowered(whole, args, kwargs)
            self.kernels, self.bytes = self.kernels + kernels, self.bytes + size
            return whole.function(*args, **kwargs)
        finally:
            self.paused = False

    def launches(self) -> Launches:
        """Return what was counted."""
        return Launches(self.kernels, self.copies, self.blocking, self.bytes)


def count(function: Callable[[], Any]) -> Launches:
    """Return what the second run of a function asks of a device; it makes its tensors itself, on `DEVICE`."""
    try:
        with FakeTensorMode():
            _run(function)  # copies the constants
            return _run(function).launches()
    finally:
        devices.made_once.cache_clear()  # it holds fake tensors


def _run(function: Callable[[], Any]) -> Counter:
    counter = Counter()

    def call(whole: Whole[..., Any], *args: Any, **kwargs: Any) -> Any:
        return counter.call(whole, *args, **kwargs)

    with (
        mock.patch.object(Whole, "__call__", call),
        mock.patch.object(compiling, "trouble", return_value=""),
        counter,
    ):
        function()
    return counter


class _LoweredError(BaseException):
    """Ends a compilation after its kernels are known, before any is built."""


def lowered(whole: Whole[..., Any], args: Any, kwargs: Any) -> tuple[int, int]:
    """Return how many kernels inductor makes of a call of a compiled function, and the bytes that they move."""
    from torch._guards import TracingContext, detect_fake_mode, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in places]

    def run(*tensors: Tensor) -> tuple[Any, ...]:
        filled = [*leaves]
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        return (*tree_leaves(whole.function(*args, **kwargs)),)

    graph = make_fx(torch.func.functionalize(run), select_decomp_table(), _allow_non_fake_inputs=True)(
        *tensors
    )
    counts: list[int] = []

    def stop(lowering: GraphLowering) -> None:
        lowering._update_scheduler()
        nodes = [n for n in lowering.scheduler.nodes if not isinstance(n, NopKernelSchedulerNode)]
        counts.extend([len(nodes), lowering.count_bytes()[0]])
        raise _LoweredError

    fake = detect_fake_mode(tensors)
    assert fake
    with (
        pretended_gpu(),
        mock.patch.object(GraphLowering, "compile_to_module", stop),
        config.patch(fx_graph_cache=False, **whole.options),
        tracing(TracingContext(fake)),
        V.set_fake_mode(fake),
        suppress(_LoweredError),
    ):
        compile_fx_inner(graph, tensors)
    return counts[0], counts[1]


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let inductor plan for an H100 that is not there; nothing can run on it."""
    answers = {
        "torch.cuda.is_available": True,
        "torch.cuda.device_count": 1,
        "torch.cuda.current_device": 0,
        "torch.cuda.get_device_capability": (H100.major, H100.minor),
        "torch.cuda.get_device_properties": H100,
        "torch.cuda.get_rng_state": torch.zeros(0),
        "torch.cuda.set_rng_state": None,
        "torch.cuda.synchronize": None,
        "torch.cuda._lazy_init": None,
        "torch.cuda._exchange_device": 0,
        "torch.cuda._maybe_exchange_device": 0,
        "torch._inductor.scheduler.has_triton": True,
        "torch._dynamo.device_interface.CudaInterface.get_device_properties": H100,
        "torch._dynamo.device_interface.CudaInterface.Worker.get_device_properties": H100,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, lambda *_args, answer=answer, **_options: answer))
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


def views() -> None:
    """Make the views of a step."""
    recipe = dino.dinov2_vits14()
    modality = recipe.modality.build()
    assert isinstance(modality, Image)
    plan = ViewPlan(num_global=2, num_local=8, mask_ratio=(0.1, 0.5), mask_share=0.5)
    raw = tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE), raw_batch()
    )
    modality.views(raw, {"image": plan}, RowRandom((0, 0), 0, BATCH, BATCH, DEVICE))


ROWS: dict[str, Callable[[], Any]] = {"batch": batch_to_device, "views": views}


def table() -> dict[str, Any]:
    """Return the counts of all rows, with the release of torch that they hold for."""
    release = ".".join(torch.__version__.split(".")[:2])
    return {"torch": release, "rows": {name: asdict(count(function)) for name, function in ROWS.items()}}


def beyond(rows: dict[str, dict[str, int]]) -> list[str]:
    """Return a line for every count above its limit."""
    return [
        f"{name}: {rows[name][what]} {what}, at most {limit} are allowed"
        for name, limits in LIMITS.items()
        for what, limit in limits.items()
        if rows[name][what] > limit
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
    print("\n".join(beyond(counted["rows"])))
    if options.write:
        STORED.write_text(json.dumps(counted, indent=1) + "\n")
    elif counted != json.loads(STORED.read_text()):
        print(f"differs from {STORED.name}: {json.loads(STORED.read_text())}")


if __name__ == "__main__":
    main()
