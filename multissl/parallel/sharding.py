"""What a learner becomes on its devices: precision, activation checkpoints, compilation, copies or shards, by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multissl.config import Config
from multissl.contract.abilities import Shardable
from multissl.contract.encoder import Encoder
from multissl.parallel.compiling import choose, compiles
from multissl.parallel.ranks import TIMEOUT, _group_of_one, without_lines_of_gloo, world
from multissl.parallel.replicas import cast_inputs, replicate

KEPT = 2_000_000_000
"""Trainable parameters below which blocks stay gathered from forward to backward pass: memory for half the messages."""


@dataclass(kw_only=True, slots=True)
class Parallel(Config):
    """How a run spreads over devices."""

    shard: int = 1
    """Ranks over which parameters, gradients and teacher are sharded (FSDP2); 1 is plain data parallel, where every
    rank holds them whole. Ranks beyond it hold copies: 8 ranks with shard 4 are 2 copies."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; master weights, reductions and losses stay fp32. Auto: bf16 on CUDA."""
    checkpoint_activations: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more compute."""
    compile: bool | None = None
    """torch.compile of training steps: blocks one by one, and losses over prototypes. None: on CUDA, where a compiler
    works; evaluation runs everything as it is written."""
    fully_shard: Literal["auto", "always"] = "auto"
    """Auto leaves FSDP2 out where nothing is sharded, as it only costs time there; always is for comparison."""
    timeout: float = TIMEOUT
    """Seconds after which ranks that wait for another one give up; well before, the silent one is named. Above the time
    that one rank alone may take for a checkpoint or an evaluation."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"parallel.timeout={self.timeout}: want more than 0 seconds")
        if self.shard < 1:
            raise ValueError(f"parallel.shard={self.shard}: want 1 or more ranks")


def parallelize(learner: Shardable, cfg: Parallel, device: torch.device) -> None:
    """Move a learner to its device; then activation checkpointing and compile, block by block, and copies or shards.

    On CUDA ranks torch's batch norms become SyncBatchNorm; on CPU ranks, which have none, each normalizes by its own
    rows. Batch norm cannot run on sharded bf16 parameters: a learner that holds one keeps them in fp32, and its
    encoders (a teacher's copies too) compute under torch.autocast.
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
            if isinstance(module, Encoder):
                module.autocast = torch.bfloat16
    units = learner.shard_units()
    if cfg.checkpoint_activations:
        from torch.distributed._composable.checkpoint_activation import checkpoint

        for unit in units:
            checkpoint(unit)
    choose(cfg.compile)
    if compiles(device):
        for unit in units:
            unit.compile(dynamic=False)
    if cfg.shard > 1 or cfg.fully_shard == "always":
        _fully_shard(learner, units, cfg.shard, device, half)
        return
    if half:
        for unit in units:
            cast_inputs(unit, torch.bfloat16)
    exempt = [p for module in _learned_scalars(learner) for p in module.parameters(recurse=False)]
    replicate(learner, learner.entry_points(), torch.bfloat16 if half else None, exempt)


def _fully_shard(
    learner: Shardable, units: Sequence[nn.Module], shard: int, device: torch.device, half: bool
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        _group_of_one(device)
    with without_lines_of_gloo():
        mesh = init_device_mesh(device.type, (world() // shard, shard), mesh_dim_names=("replicate", "shard"))
    # gradients of half-precision passes are summed in fp32, others as they are
    dtype, summed = (torch.bfloat16, torch.float32) if half else (None, None)
    blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=summed)
    # torch 2.10 would cast a batch's float targets along with the inputs, so the root leaves its inputs alone.
    root = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=summed, cast_forward_inputs=False)
    for module in _learned_scalars(learner) if half else ():
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=True)
    small = sum(p.numel() for p in learner.parameters() if p.requires_grad) < KEPT
    for unit in units:
        kept = small and any(p.requires_grad for p in unit.parameters())
        fully_shard(unit, mesh=mesh, mp_policy=blocks, reshard_after_forward=not kept)
        if kept:  # no backward pass will come to free what a pass without gradient gathers
            unit.register_forward_hook(_reshard_without_gradient)
    # The root is resharded too: between steps every parameter is a shard, so EMA and checkpoints see only shards.
    fully_shard(learner, mesh=mesh, mp_policy=root, reshard_after_forward=True)
    for name in learner.entry_points():
        register_fsdp_forward_method(learner, name)


def _reshard_without_gradient(unit: nn.Module, *_: object) -> None:
    if not torch.is_grad_enabled():
        cast(Any, unit).reshard()


def _learned_scalars(learner: nn.Module) -> list[nn.Module]:
    """Return modules of a learned temperature or bias: one number, which bf16 would round away, computes in fp32."""
    owned = ((module, list(module.parameters(recurse=False))) for module in learner.modules())
    return [module for module, own in owned if own and all(p.numel() == 1 for p in own)]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; a plain tensor is its own shard."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """Return a sharded tensor put together on every rank; a plain tensor as it is."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor
