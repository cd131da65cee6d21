"""Peak memory of a CLIP step over the batch size, encoded whole and in chunks of a fixed size.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/chunk_memory.py [--chunk 64] [--batches 128 512 2048]

Every line is a process of its own, forked from this one: two small transformers (pictures of 3x32x32, sequences of 32)
under CLIP, one step forward and backward on the CPU. Printed is how far the process's peak resident memory rises above
what it held with the batch already made, and the batch's own size. What is left to grow with `--chunk` are the
embeddings, the masks of all pairs, 2 bytes x batch^2, and the scores of 512 anchors at a time. The variable makes glibc
hand memory back at once, without it the peak holds what is free, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time

import torch

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.layers.heads import MLPHead
from multissl.objectives.clip import CLIP

SPECS = {
    "image": StreamSpec(kind="grid", shape=(3, 32, 32), num_tokens=64, patch=(4, 4)),
    "text": StreamSpec(kind="sequence", shape=(32,), num_tokens=32, vocab=1000),
}


def peak_mib() -> float:
    """The largest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def step(batch: int, chunk: int) -> dict[str, float]:
    """One step; MiB that it needed above the batch, MiB of the batch, seconds."""
    torch.manual_seed(0)
    encoders = build_encoders(
        dict.fromkeys(SPECS, TransformerEncoder.Config(dim=32, depth=2, heads=2)), SPECS
    )
    objective = CLIP.Config(projector=MLPHead.Config(out=32, layers=1, norm="none")).build(encoders, SPECS)
    learner = Learner(encoders, objective, chunk)

    def views(rows: int) -> Batch:
        x = {"image": torch.randn(rows, 3, 32, 32), "text": torch.randint(4, 1000, (rows, 32))}
        return Batch(Views(x=x[s], stream=s, role="clean") for s in SPECS)

    def once(made: Batch) -> None:
        learner.backward(learner(made, Progress(step=0, total=1)))

    once(views(2))  # what a first step alone allocates: threads, kernels' workspaces, gradients
    made = views(batch)
    before, began = peak_mib(), time.process_time()
    once(made)
    own = sum(v.x.numel() * v.x.element_size() for v in made) / 2**20
    return {"mib": peak_mib() - before, "batch_mib": own, "seconds": time.process_time() - began}


def main() -> None:
    """A table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 2048])
    given = parser.parse_args()
    print(f"{'batch':>6} {'chunk':>6} {'step, MiB':>10} {'batch, MiB':>11} {'CPU s':>6}")
    for chunk in (0, given.chunk):
        for batch in given.batches:
            with multiprocessing.get_context("fork").Pool(1) as alone:
                found = alone.apply(step, (batch, chunk))
            size, own, seconds = (found[n] for n in ("mib", "batch_mib", "seconds"))
            print(f"{batch:>6} {chunk:>6} {size:>10.0f} {own:>11.1f} {seconds:>6.1f}", flush=True)


if __name__ == "__main__":
    main()
