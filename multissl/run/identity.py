"""The data that a run was trained on, known again at the next start: what changed is named before a step is taken.

Of every split the number of samples is written down, a digest of them in order, a sum that no order changes, and a
digest of their names. They tell apart what was appended, removed, shuffled, changed and replaced.
Shapes: S samples of a split.  State: none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from multissl.contract.data import DataOf
from multissl.contract.modality import Modality
from multissl.parallel.sharding import full
from multissl.run.folder import RunFolder
from multissl.sources.identity import Keys, joined_keys, keys_of, mixed
from multissl.sources.splits import SplitSamples

Summary = Mapping[str, Any]


class DataChangedError(ValueError):
    """The data is not what the run was trained on so far."""


class Identity:
    """The samples of each split, as numbers that are equal for equal ones."""

    def __init__(self, splits: Mapping[str, Keys]) -> None:
        self.splits = splits

    def summary(self) -> dict[str, Summary]:
        """Return what is written down of each split, as JSON values."""
        return {split: _summary(keys) for split, keys in self.splits.items()}

    def differences(self, before: Mapping[str, Summary], plural: str = "samples") -> list[str]:
        """Return a line for each split that is no longer what was written down of it; none where all are."""
        now = self.summary()
        changed = [s for s in before if s in now and before[s] != now[s]]
        if not changed:
            return []
        both = [s for s in before if s in now]
        same_set = (
            sum(int(before[s]["sum"], 16) for s in both) % 2**64
            == sum(int(now[s]["sum"], 16) for s in both) % 2**64
        )
        if same_set and sum(before[s]["count"] for s in both) == sum(now[s]["count"] for s in both):
            return [f"{' and '.join(changed)}: shuffled, the same {plural} are in another order or split"]
        return [f"{s}: {_difference(before[s], self.splits[s], plural)}" for s in changed]


def identity_of(modality: Modality, *, with_validation: bool) -> Identity:
    """Return what the splits of a modality's data are known by, those beside training where something is measured."""
    splits = {}
    for split in ("train", "val", "test") if with_validation else ("train",):
        try:
            columns = modality.known_by(split)
        except ValueError:  # a split that is needed and missing is said where it is needed
            continue
        if columns:
            splits[split] = joined_keys([_keys(column) for column in columns])
    return Identity(splits)


def weights_digest(encoders: nn.Module) -> str:
    """Return a digest of the weights of encoders, with their names; called on every rank where they are sharded."""
    weights = hashlib.sha256()
    for name, tensor in sorted(encoders.state_dict().items()):
        weights.update(name.encode())
        weights.update(
            full(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return weights.hexdigest()


def check_data(
    run: RunFolder, identity: Identity, *, step: int, accept: bool, plural: str, start: str = ""
) -> bool:
    """Compare the data with what a run was trained on up to `step`, and write down what it is from then on.

    `start` is a digest of the weights that the run starts from, where it starts from some: they are compared, too.
    Returns whether the run goes on with others than before, which `accept` allows. Raises a `DataChangedError` that
    names the difference where it does not. A run that knows of no data yet takes what is there.
    """
    entries = [entry for entry in run.read_data() if entry["from_step"] <= step]
    before = entries[-1]["splits"] if entries else {}
    lines = identity.differences(before, plural) if step else []
    started = entries[-1].get("start", "") if entries and step else ""
    if start and started not in ("", start):
        lines.append("the weights of --init are others than those that the run started from")
    if lines and not accept:
        raise DataChangedError(
            f"the data is not what {run.path} was trained on up to step {step}:\n  "
            + "\n  ".join(lines)
            + "\n"
            "put it back to go on, or --accept-data goes on with what is there and measures the baselines again; "
            "another --out, or --restart, begins anew"
        )
    now = {**(before if step else {}), **identity.summary()}
    weights = {"start": start} if start else {}
    if not step:
        run.write_data([{"from_step": 0, "splits": now, **weights}])
    elif lines or now != before:
        # from the next step on: a start that ends before a checkpoint leaves the data of before in force
        run.write_data([*entries, {"from_step": step + 1 if lines else step, "splits": now, **weights}])
    return bool(lines)


def _keys(column: Sequence[Any]) -> Keys:
    if isinstance(column, DataOf) and isinstance(column.samples, SplitSamples):
        samples = column.samples
        return keys_of(samples.data, samples.rows)
    return keys_of(column)


def _rows(keys: Keys) -> np.ndarray:
    """Return one number for each sample, uint64 [S]."""
    return mixed(keys.names, keys.contents)


def _summary(keys: Keys) -> Summary:
    rows = _rows(keys)
    return {
        "count": len(rows),
        "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "sum": f"{int(rows.sum(dtype=np.uint64)):016x}",
        "names": hashlib.sha256(keys.names.tobytes()).hexdigest(),
    }


def _difference(before: Summary, keys: Keys, plural: str) -> str:
    """Return what became of a split in words."""
    was, now = before["count"], len(keys.names)
    if now > was:
        first = _summary(Keys(keys.names[:was], keys.contents[:was]))
        how = "were appended" if first == before else "came in, and others changed or moved"
        return f"{was:,} -> {now:,} {plural}, {now - was:,} {how}"
    if now < was:
        return f"{was:,} -> {now:,} {plural}, {was - now:,} were removed"
    if _summary(keys)["names"] == before["names"]:
        return f"{now:,} {plural} as before, but sizes, values or labels of some have changed"
    return f"{now:,} {plural} as before, but some were replaced: their names are others"
