"""The model card of an exported run: what the record says, and "not measured" where it says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from multissl import registry
from multissl.config import config_name, to_dict
from multissl.contract.estimate import Estimate
from multissl.engine.judging import measurements
from multissl.exporting.base import Exporter, Subject
from multissl.exporting.safetensors import without_places
from multissl.version import __version__
from multissl.weights.released import ENDINGS, RESTRICTED, released

UNKNOWN = "other"
NOT_MEASURED = "not measured"
JOULES = "joules_per_sample"
PUE, KG_PER_KWH = 1.1, 0.385
"""What a data center uses for each kWh of its devices, and the carbon dioxide of a kWh: DINOv2's values, of which the
latter is the mean of the United States."""
CARD = """\
---
{head}
---

# {name}

A {encoder} of {stream}, trained without labels by {objective} on {modality} for {steps:,} steps with multissl
{version}, and written for {reads}.

```python
{code}```

`features = encode(x)` gives [B, {width}]; x is {reads_input}.
A fresh process read this folder with these lines and gave the features of the original within {difference:.0e}.

## Data

{data}

## Figures

{figures}

## Licence

{licence}

## Energy

{energy}
"""


def card(exporter: Exporter, subject: Subject, code: str, difference: float) -> str:
    """Return the text of README.md."""
    model, folder = subject.model, subject.run
    licence, sentence = licence_of(subject)
    head = {"license": licence, "tags": ["multissl", "self-supervised"], **exporter.card(subject)}
    return CARD.format(
        head="\n".join(_lines(head)),
        name=folder.path.resolve().name,
        encoder=registry.name_of(type(subject.encoder)) or type(subject.encoder).__name__,
        stream=subject.stream,
        objective=config_name(type(model.recipe.objective)),
        modality=config_name(type(model.recipe.modality)),
        steps=model.step,
        version=__version__,
        reads=exporter.reads,
        code=code,
        width=subject.module.dim,
        reads_input=subject.module.preparation.reads,
        difference=max(difference, 1e-7),
        data=data_of(subject),
        figures=figures_of(subject),
        licence=sentence,
        energy=energy_of(subject),
    )


def _lines(head: Mapping[str, Any]) -> list[str]:
    """Return the lines of YAML of plain values."""
    lines = []
    for name, value in head.items():
        lines += [f"{name}:", *(f"- {v}" for v in value)] if isinstance(value, list) else [f"{name}: {value}"]
    return lines


def data_of(subject: Subject) -> str:
    """Return what is known of the training data: its name, and the digests of its splits."""
    name = str(without_places(to_dict(subject.model.recipe.modality).get("data", ""))) or "built in"
    entries = subject.run.read_data()
    if not entries:
        return f"{name}; its samples were not written down."
    lines = [f"{name}, known by:", "", "| split | samples | SHA-256 of what they hold |", "|---|---|---|"]
    for split, known in entries[-1]["splits"].items():
        lines.append(f"| {split} | {known['count']:,} | `{known['sha256'][:16]}` |")
    return "\n".join(lines)


def figures_of(subject: Subject) -> str:
    """Return the latest figures as a table, each with its interval where one was measured."""
    step = subject.model.step
    rows: dict[str, str] = {}
    found = [m for m in measurements(subject.run.read_metrics()) if m["step"] <= step]
    for name, value in (found[-1] if found else {}).items():
        if name not in ("kind", "step") and isinstance(value, int | float):
            rows[name] = _figure(value, value if isinstance(value, Estimate) else None)
    later = [e for e in subject.run.read_evaluations() if e["step"] == step]
    for name, known in (later[-1]["figures"] if later else {}).items():
        if known["value"] is not None:
            rows[name] = _interval(known["value"], known.get("n"), known.get("low"), known.get("high"))
    if not rows:
        return f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}."
    said = subject.run.read_summary().get("verdict", "")
    table = ["| figure | value |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    return "\n".join([*table, *(["", f"{said[:1].upper()}{said[1:]}."] if said else [])])


def _figure(value: float, known: Estimate | None) -> str:
    if known is None:
        return _interval(value, None, None, None)
    return _interval(value, known.n, known.low, known.high)


def _interval(value: float, n: int | None, low: float | None, high: float | None) -> str:
    """Return a figure with its interval, if it has one."""
    if not math.isfinite(value):
        return NOT_MEASURED
    if n is None or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return f"{value:.4g}"
    return f"{value:.4g} (95 % interval {low:.4g} to {high:.4g}, n = {n:,})"


def licence_of(subject: Subject) -> tuple[str, str]:
    """Return the licence for the head of the card, and the sentence about it: that of the weights it started from."""
    places = [subject.model.recipe.init, *_pretrained(subject)]
    start = next((place for place in places if place), "")
    if not start:
        return (
            UNKNOWN,
            "Trained from random weights, which are whose who trained them; that of the data is not known here.",
        )
    name = ENDINGS.sub("", str(without_places(start)).rpartition("/")[2].rpartition(":")[2])
    known = next((model for model in released() if model.name == name), None)
    if known is None:
        return UNKNOWN, f"Trained from {name}, whose licence is not known here: read what came with it."
    limit = (
        ", which forbids commercial use, of what is trained from it too"
        if known.licence in RESTRICTED
        else ""
    )
    return known.licence.lower(), f"Trained from {name}, released under {known.licence}{limit}."


def _pretrained(subject: Subject) -> list[str]:
    """Return what the options of the encoder say that it starts from."""
    known = subject.model.recipe.encoders.get(subject.stream)
    options = {} if known is None else to_dict(known)
    return [str(options.get("model") or options.get("name") or "")] if options.get("pretrained") else []


def energy_of(subject: Subject) -> str:
    """Return the energy of the training where the device reported its power."""
    record = subject.run.read_metrics()
    lines = [line for line in record if line["kind"] == "train" and line["step"] <= subject.model.step]
    known = [(line[JOULES], line["step"]) for line in lines if isinstance(line.get(JOULES), int | float)]
    if not known:
        return "Not measured."
    mean = sum(joules for joules, _ in known) / len(known)
    total = mean * subject.model.recipe.batch_size * subject.model.step / 3.6e6
    readings = f"{len(known)} readings of their power ({mean:.2g} J for a sample)"
    carbon = total * PUE * KG_PER_KWH
    watts = [line["watts"] for line in lines if isinstance(line.get("watts"), int | float)]
    power = f" ({sum(watts) / len(watts):.0f} W of the first)" if watts else ""
    return (
        f"About {total:.2g} kWh of the devices alone, by {readings}{power}. With a data center's overhead (PUE "
        f"{PUE}) and {KG_PER_KWH} kg of CO2 for a kWh, as DINOv2 counts (arXiv 2304.07193): {carbon:.2g} kg."
    )
