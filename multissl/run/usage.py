"""The README of a run: what it is, and lines of code that use it, which run as they stand where it was trained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from multissl.config import config_name
from multissl.contract.data import Unreadable
from multissl.contract.modality import Modality
from multissl.inference import clean_views
from multissl.modalities.paired.rows import Record
from multissl.run.folder import RunFolder
from multissl.run.model import Model

SHOWN, TRIED = 4, 64
"""Samples in the lines of code, and the most that are tried for that."""
PAGE = """\
# {name}

{verdict}

`{objective}` on `{modality}`, {steps:,} steps; [{report}]({report}) shows it. The lines below run in
`{here}`, where it was trained; elsewhere give the folders as they are seen from there.

```python
import multissl

model = multissl.load({run!r})  # reads JSON and safetensors alone
data = model.modality.dataset("{split}")
features = model.encode([data[i].data{member} for i in {samples}]{stream})
print(features.shape)  # ({count}, {width})
```

{best}{plain}Samples of your own are given to `encode` as the data has them: paths, arrays, texts, rows. From a shell:

```sh
multissl encode {quoted} --out features.parquet{option}
multissl eval {quoted}
multissl audit {quoted}
```

`--data PATH` encodes other data. `multissl train RECIPE --init {quoted}` starts from its weights.
"""


def readme(run: RunFolder, model: Model, verdict: str) -> str:
    """Return the README of a run that ends with this verdict; "" where none of its first samples can be read."""
    stream, *others = model.modality.streams()
    split, samples = _some(model, stream)
    if not samples:
        return ""
    member, payload = _member(model.modality.dataset(split)[samples[0]].data, stream if others else "")
    width = model.encode([payload], stream=stream).shape[1]
    return PAGE.format(
        name=run.path.resolve().name,
        verdict=f"{verdict[:1].upper()}{verdict[1:]}.",
        objective=config_name(type(model.recipe.objective)),
        modality=config_name(type(model.recipe.modality)),
        steps=model.step,
        report=run.report.name,
        here=Path.cwd(),
        run=str(run.path),
        quoted=shlex.quote(str(run.path)),
        split=split,
        member=member,
        samples=samples,
        stream=f', stream="{stream}"' if others else "",
        option=f" --stream {stream}" if others else "",
        count=len(samples),
        width=width,
        best=_best(run, model),
        plain=_plain(model, stream, bool(others)),
    )


def _best(run: RunFolder, model: Model) -> str:
    """Return the lines about the best step, where that is not the last; "" where there is none."""
    best = run.read_best()
    if best is None or best["step"] == model.step:
        return ""
    return (
        f"These are the weights of the last step. By {best['figure']} step {best['step']:,} was the best "
        f"({best['value']:.4g}): `{run.path}@best` gives its weights wherever the folder of a run is named.\n\n"
    )


def _plain(model: Model, stream: str, named: bool) -> str:
    """Return the lines about the module of a stream; "" where its modality has none."""
    try:
        reads = model.modality.preparation(stream).reads
    except ValueError:
        return ""
    argument = f'stream="{stream}", ' if named else ""
    return (
        f"`model.module({argument}trainable=True)` is its encoder as a plain `torch.nn.Module` for a training loop of "
        f"your own, which reads {reads}.\n\n"
    )


def _member(data: Any, stream: str) -> tuple[str, Any]:
    """Return how the payload of a stream is picked from what a sample holds, and the payload."""
    if not stream:
        return "", data
    if isinstance(data, Record):
        return f'.parts["{stream}"]', data.parts[stream]
    return f'["{stream}"]', data[stream]


def _some(model: Model, stream: str) -> tuple[str, list[int]]:
    """Return a split and some of its samples that can be read and have a stream."""
    for split in ("val", "train"):
        try:
            data = model.modality.dataset(split)
        except ValueError:  # there is none
            continue
        found = [i for i in range(min(TRIED, len(data))) if _is_readable(model.modality, split, i, stream)]
        if found:
            return split, found[:SHOWN]
    return "", []


def _is_readable(modality: Modality, split: str, index: int, stream: str) -> bool:
    try:
        views = clean_views(modality, [modality.dataset(split)[index]], stream)
    except Unreadable:
        return False
    return views.present is None or bool(views.present.all())
