"""Runs a function in several gloo processes and returns what each gave."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from multissl.parallel.ranks import barrier, process_group


def run_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(rank, *args)` in `count` processes of one group; the results in rank order.

    The function must live at the top of a module. An exception in a process fails the test.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A server with torch already imported: a process starts in a tenth of the time.
        multiprocessing.set_forkserver_preload(
            ["torch.distributed.fsdp", "torch._dynamo", "multissl.parallel.ranks"]
        )
        work = (count, free_port(), folder, function, args)
        start_processes(_one, work, nprocs=count, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _one(
    rank: int, count: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    with process_group():
        torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
        barrier()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
