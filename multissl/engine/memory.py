"""What to do when the device cannot hold a step, in words that can be typed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class OutOfMemory(RuntimeError):
    """The device cannot hold a step."""


@contextlib.contextmanager
def memory_advice(samples: int, batch_norm: bool) -> Iterator[None]:
    """Turn torch's error into advice for encoders that see so many samples at a time, perhaps with batch norm."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = max(1, samples // 2)
        exact = f"--chunk {half} encodes {half} samples at a time for the same gradient"
        micro = f"--chunk {half} --chunk_norm micro encodes {half} samples at a time, and batch norm sees those alone"
        raise OutOfMemory(
            f"out of memory: {micro if batch_norm else exact}; "
            "--parallel.checkpoint-activations true and a smaller --batch-size help too"
        ) from error
