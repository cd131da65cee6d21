"""Ranks: the only file that knows there may be several.

One process, torchrun and SLURM take the same path. Sums and gathers carry gradients: as every rank differentiates its
own loss and the trainer averages parameter gradients over ranks, the backward of a gather or a sum adds up what all
ranks ask of a value.
Shapes: B rows of this rank, W ranks.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multissl.config import Config


@dataclass(kw_only=True, slots=True)
class Parallel(Config):
    """How a run spreads over devices."""

    shard: int = 1
    """Ranks over which parameters, gradients and teacher are sharded (FSDP2); 1 is plain data parallel. Ranks beyond
    it hold copies: 8 ranks with shard 4 are 2 copies."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; master weights, reductions and losses stay fp32. Auto: bf16 on CUDA."""
    checkpoint_activations: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more compute."""
    compile: bool = False
    """torch.compile, one block at a time, of training steps; evaluation runs the blocks as they are written."""
    fully_shard: Literal["auto", "always"] = "auto"
    """Auto leaves FSDP2 out on a single CPU rank, where it only costs time."""

    def __post_init__(self) -> None:
        if self.shard < 1:
            raise ValueError(f"parallel.shard={self.shard}: want 1 or more ranks")


# --------------------------------------------------------------------------------------------- ranks


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this rank writes files and talks to the terminal."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """The ranks' process group for the time of a `with`, and this rank's device.

    Reads torchrun's variables, else SLURM's; without either there is one rank, which needs no group. An existing
    group is used and left alone.
    """
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    options: dict[str, Any] = {"backend": "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"}
    if "RANK" in os.environ:
        options["init_method"] = "env://"
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        options |= {"init_method": _slurm_address(), "rank": int(os.environ["SLURM_PROCID"])}
        options["world_size"] = int(os.environ["SLURM_NTASKS"])
    else:
        options = {}
    if options:
        dist.init_process_group(**options)
    try:
        yield device
    finally:
        if dist.is_initialized():  # closed explicitly: at exit gloo may abort the process
            dist.destroy_process_group()


def _group_of_one(device: torch.device) -> None:
    """FSDP2 wants a group even for one rank; nothing else does."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _slurm_address() -> str:
    host = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if not host:
        raise ValueError("SLURM gives no address of the first node: set MASTER_ADDR, or start with torchrun")
    port = os.environ.get("MASTER_PORT") or str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000)
    return f"tcp://{host}:{port}"


# -------------------------------------------------------------------------------- sums and gathers


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def gather(x: Tensor) -> Tensor:
    """x [B, ...] of every rank in rank order, [W*B, ...], with gradient. All ranks must hold equally many rows."""
    return cast(Tensor, _Gather.apply(x)) if world() > 1 else x


def sum_ranks(x: Tensor) -> Tensor:
    """The sum of x over ranks, with gradient."""
    return cast(Tensor, _Sum.apply(x)) if world() > 1 else x


def row_labels(rows: int, device: torch.device | None = None) -> Tensor:
    """The global numbers of this rank's rows, int64 [rows]."""
    return torch.arange(rows, device=device) + rank() * rows


def all_true(flags: Tensor) -> Tensor:
    """Which of some flags (bool, any shape) hold on every rank."""
    if world() == 1:
        return flags
    lowest = flags.float()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return lowest > 0.5


def mean_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars averaged over ranks in one message, for logs; every rank must hold the same names."""
    if world() == 1 or not values:
        return values
    packed = torch.stack([v.detach().float().reshape(()) for v in values.values()])
    dist.all_reduce(packed)
    return dict(zip(values, packed / world(), strict=True))


def share(value: Any) -> Any:
    """A picklable value of rank 0, on every rank."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


# ------------------------------------------------------------------------------- parallel modules


def parallelize(learner: nn.Module, cfg: Parallel, device: torch.device) -> nn.Module:
    """Move a learner to its device; then activation checkpointing, compile and FSDP2, in that order, block by block.

    `learner.shard_units()` names the blocks and `learner.entry_points()` the methods besides `forward` that encode.
    On CUDA ranks torch's batch norms become SyncBatchNorm; on CPU ranks, which have none, each normalises by its own
    rows. Batch norm cannot run on sharded bf16 parameters: a learner that holds one keeps them in fp32, and its
    encoders (whatever has `autocast`, a teacher's copies too) compute under torch.autocast.
    """
    if world() % cfg.shard:
        raise ValueError(f"parallel.shard={cfg.shard} does not divide the {world()} ranks of this run")
    learner.to(device)
    if device.type == "cuda" and world() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(learner)
    half = cfg.precision == "bf16" or (cfg.precision == "auto" and device.type == "cuda")
    if half and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in learner.modules()):
        half = False
        for module in learner.modules():
            if hasattr(module, "autocast"):
                cast(Any, module).autocast = torch.bfloat16
    units = cast(Any, learner).shard_units()
    if cfg.checkpoint_activations:
        from torch.distributed._composable.checkpoint_activation import checkpoint

        for unit in units:
            checkpoint(unit)
    if cfg.compile:
        for unit in units:
            unit.compile(dynamic=False)
    if world() > 1 or half or cfg.fully_shard == "always":
        _fully_shard(learner, units, cfg.shard, device, half)
    return learner


def _fully_shard(
    learner: nn.Module, units: Sequence[nn.Module], shard: int, device: torch.device, half: bool
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        _group_of_one(device)
    mesh = init_device_mesh(device.type, (world() // shard, shard), mesh_dim_names=("replicate", "shard"))
    # gradients of half-precision passes are summed in fp32, others as they are
    dtype, summed = (torch.bfloat16, torch.float32) if half else (None, None)
    blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=summed)
    # torch 2.10 would cast a batch's float targets along with the inputs, so the root leaves its inputs alone.
    root = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=summed, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=blocks, reshard_after_forward=True)
    # The root is resharded too: between steps every parameter is a shard, so EMA and checkpoints see only shards.
    fully_shard(learner, mesh=mesh, mp_policy=root, reshard_after_forward=True)
    for name in cast(Any, learner).entry_points():
        register_fsdp_forward_method(learner, name)


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Run compiled blocks as they are written, for a `with`; what is compiled stays and is used again afterwards.

    Dynamo keeps 8 variants of a block, one for each shape and mode. Shapes of an evaluation would take them, and steps
    that find none left run uncompiled from then on, without a word.
    """
    return torch.compiler.set_stance("force_eager")


def clip_gradients(groups: dict[str, list[nn.Parameter]], limit: float) -> dict[str, Tensor]:
    """Scale each group's gradients to a norm of at most `limit` (0: leave them); the norms before, by group."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norms: dict[str, Tensor] = {}
    for name, parameters in groups.items():
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = get_total_norm(grads)
        norms[name] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator]
        if limit > 0 and grads:
            clip_grads_with_norm_(parameters, limit, norms[name])
    return norms


def largest_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The L-infinity norm of the gradient, over all ranks."""
    peaks = [local(p.grad).abs().max() for p in parameters if p.grad is not None and local(p.grad).numel()]
    peak = torch.stack(peaks).max() if peaks else torch.zeros(())
    if world() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return peak


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor; a plain tensor is its own shard."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every rank; a plain tensor as it is."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


# ------------------------------------------------------------------------------------ checkpoints


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write a nested state of tensors, sharded or not, into a folder (torch.distributed.checkpoint)."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _quiet():
            save(state, checkpoint_id=str(folder))
    except (
        CheckpointException
    ) as error:  # no Exception, so nobody would catch it; the first rank's reason is enough
        reason = next(iter(error.failures.values()))[0]
        raise OSError(str(reason) or type(reason).__name__) from reason


def load_state(state: dict[str, Any], folder: Path) -> None:
    """Read what `save_state` wrote into a state of the same structure, on any number of ranks.

    The format unpickles its metadata: only for checkpoints of one's own runs.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    with _quiet():
        load(state, checkpoint_id=str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about its own storage classes, and about a group that one rank does not need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
        )
        yield


def optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, so that it can be loaded on another number of ranks."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return cast(dict[str, Any], get_optimizer_state_dict(learner, optimizer))


def restore_optimizer(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer the state that `optimizer_state` made."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(learner, optimizer, state)
