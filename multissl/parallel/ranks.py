"""Ranks: how many processes train together, which one this is, and the group that they form.

One process, torchrun and SLURM take the same path.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 1800.0
"""Seconds after which ranks that wait for another one give up."""


def world() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this rank writes files and talks to the terminal."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def process_group(timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """The ranks' process group for the time of a `with`, and this rank's device.

    A rank that waits for others for more than `timeout` seconds gives up.
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
        with without_lines_of_gloo():
            dist.init_process_group(**options, timeout=datetime.timedelta(seconds=timeout))
    try:
        yield device
    finally:
        if dist.is_initialized():  # closed explicitly: at exit gloo may abort the process
            dist.destroy_process_group()


def _group_of_one(device: torch.device) -> None:
    """FSDP2 wants a group even for one rank; nothing else does."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    with without_lines_of_gloo():
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


@contextlib.contextmanager
def without_lines_of_gloo() -> Iterator[None]:
    """Keep the lines of gloo off the standard output, to which it says from C++ that ranks are connected."""
    try:
        kept = os.dup(1)
    except OSError:  # this process has no standard output
        yield
        return
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _slurm_address() -> str:
    host = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if not host:
        raise ValueError("SLURM gives no address of the first node: set MASTER_ADDR, or start with torchrun")
    port = os.environ.get("MASTER_PORT") or str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000)
    return f"tcp://{host}:{port}"
