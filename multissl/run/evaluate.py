"""Measuring what is there: a run again, other weights or a file of features, by any protocol, on any data.

Every figure is recorded with what it depends on: protocol, version and options, what chose among them, n and interval,
the figures that learning has to beat, the data's fingerprint, the weights' digest, seed, code, packages, machine.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from multissl.config import to_dict
from multissl.contract.estimate import Estimate, described
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.verdict import Verdict, whole_verdict
from multissl.engine.judging import alarm_of, measurements, verdicts
from multissl.files import Damaged, make_folder, replace_text
from multissl.options import Setting, read
from multissl.run import protocols as choosing
from multissl.run.copies import shared_samples
from multissl.run.folder import NotWritten, located
from multissl.run.identity import identity_of
from multissl.run.lock import now
from multissl.run.model import load
from multissl.run.protocols import Protocols, scored_split
from multissl.run.sessions import environment
from multissl.run.subject import Subject, of_model, protocols_that_fit, subject_of

log = logging.getLogger("multissl")

UNTRAINED = "untrained"
"""What stands before the figures of an encoder of the same architecture at random weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one protocol measures."""

    evaluator: Evaluator
    figures: dict[str, float]
    baselines: dict[str, float]
    untrained: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What protocols measure, and say of it."""

    metrics: dict[str, float]
    """Figures and baselines by protocol and name."""
    verdict: Verdict
    measured: dict[str, Measured] = field(default_factory=dict)
    """By protocol, in order."""
    record: dict[str, Any] = field(default_factory=dict)
    """The figures with all that they depend on, as JSON values."""

    def lines(self) -> list[str]:
        """Return a table: each figure with its interval, below the first of a protocol what it has to beat."""
        lines: list[str] = []
        for protocol, each in self.measured.items():
            for place, (name, value) in enumerate(each.figures.items()):
                lines.append(f"{f'{protocol}/{name}':<32} {described(value)}")
                if name in each.untrained:
                    lines.append(f"{'  untrained encoder':<32} {described(each.untrained[name])}")
                if not place:
                    lines += [f"{f'  {n}':<32} {described(v)}" for n, v in each.baselines.items()]
        return lines


def evaluate(
    run: Path | str,
    trust: bool = False,
    *,
    protocols: Iterable[str] | Mapping[str, Evaluator.Config] = (),
    data: str = "",
    label: str = "",
    modality: str = "",
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return what protocols measure of a run, of weights or of a file of features, with their baselines.

    `run` is a place as `multissl eval` takes it: `RUN`, `RUN@STEP`, `hf:NAME`, `timm:NAME`, a file of weights or of
    features. `protocols` are names of evaluators, or their options by the names of their figures; none: the run's own,
    or what is usual. `data`, `label` and `modality` are as on the command line, and `options` are any more of its
    options, such as `{"modality.size": 448}`. `trust`: run code that its recipe names even where the user has not
    trained with it.
    """
    named: dict[str, Any] = {"data": data, "label": label, "modality": modality} | dict(options or {})
    words = [f"--{name}={value}" for name, value in named.items() if value != ""]
    if not words and not protocols:
        return judge(run, trust).metrics
    settings = read(words)
    if isinstance(protocols, Mapping):
        subject = subject_of(str(run), settings, torch.device(device), trust)
        return measure(subject, choosing.with_options(dict(protocols), settings)).metrics
    return evaluate_place(str(run), protocols, settings, torch.device(device), trust).metrics


def evaluate_place(
    place: str, names: Iterable[str], settings: dict[str, Setting], device: torch.device, trust: bool = False
) -> Evaluation:
    """Return what protocols of some names measure of a place, with settings of the command line."""
    subject = subject_of(place, settings, device, trust)
    names = [*names]
    protocols = choosing.chosen(names, subject.protocols if subject.run else {}, subject.protocols)
    if not names and not subject.run:
        log.warning("no protocol is named: these are %s", ", ".join(protocols))
    protocols = choosing.with_options(protocols, settings)
    refuse_rest(settings, protocols)
    return measure(subject, protocols)


def refuse_rest(settings: Mapping[str, Setting], protocols: Protocols) -> None:
    """Raise a ValueError for a setting that nothing has taken."""
    for setting in settings.values():
        flag = choosing.first_flag(setting)
        known = ", ".join(f"--{name}.OPTION" for name in protocols)
        raise ValueError(
            f"eval does not take {flag}; it takes --data, --label, {known}, and of weights without a run --modality, "
            "--encoders.STREAM and --seed"
        )


def measure(subject: Subject, protocols: Protocols) -> Evaluation:
    """Return what protocols measure of a subject and of untrained encoders; a run keeps it.

    Raises a ValueError where the split that is scored is the one that is learned from.
    """
    began = time.monotonic()
    fitting, lines = protocols_that_fit(subject, protocols)
    for line in lines:
        log.warning(line)
    evaluators = {name: cfg.build() for name, cfg in fitting.items()}
    refuse_trained_splits(subject, evaluators)
    start, end = Progress(step=0, total=max(subject.total, 1)), Progress(
        step=max(subject.step, 1), total=max(subject.total, 1)
    )  # fmt: skip
    frozen = FrozenEncoders.of(subject.encoders)
    random = FrozenEncoders.of(subject.untrained()) if subject.untrained else None
    measured: dict[str, Measured] = {}
    for name, evaluator in evaluators.items():
        untrained = evaluator.run(random, subject.modality, start) if random else {}
        figures = evaluator.run(frozen, subject.modality, end)
        measured[name] = Measured(
            evaluator=evaluator,
            figures=figures,
            baselines=evaluator.baselines(subject.modality),
            untrained=untrained,
        )
    history = [
        {"step": 0, **_prefixed({n: m.untrained | m.baselines for n, m in measured.items()})},
        {"step": end.step, **_prefixed({n: m.figures for n, m in measured.items()})},
    ]
    said = verdicts(evaluators, history)
    return _finished(subject, protocols, measured, whole_verdict(said, ""), began)


def judge(run: Path | str, trust: bool = False) -> Evaluation:
    """Return the metrics of a run's evaluators, measured again, and the verdict on them; both are kept with the run.

    `RUN` is what it ships, or its newest checkpoint where it has not finished, `RUN@STEP` a checkpoint. The untrained
    encoder's figures are those of the run's record, as are those that a saved encoder cannot tell.
    """
    model, began = load(run, trust=trust), time.monotonic()
    subject = of_model(model, str(run))
    progress = Progress(step=model.step, total=model.recipe.steps)
    lines = [x for x in located(run)[0].read_metrics() if x.get("step", 0) <= model.step]
    recorded = measurements(lines)
    first = recorded[0] if recorded and not recorded[0]["step"] else {}
    frozen, measured = model.frozen(), dict[str, Measured]()
    for name, cfg in model.recipe.evals.items():
        evaluator = cfg.build()
        figures = evaluator.run(frozen, model.modality, progress)
        untrained = {n: first[f"{name}/{n}"] for n in figures if first.get(f"{name}/{n}") is not None}
        measured[name] = Measured(
            evaluator=evaluator,
            figures=figures,
            baselines=evaluator.baselines(model.modality),
            untrained=untrained,
        )
    again = {"step": progress.step, **_prefixed({n: m.figures for n, m in measured.items()})}
    said = verdicts({n: m.evaluator for n, m in measured.items()}, [*recorded, again])
    return _finished(subject, model.recipe.evals, measured, whole_verdict(said, alarm_of(lines)), began)


def _prefixed(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{protocol}/{name}": value for protocol, some in figures.items() for name, value in some.items()}


def refuse_trained_splits(subject: Subject, evaluators: Mapping[str, Evaluator]) -> None:
    """Raise a ValueError where a protocol would score the samples that it learns from; say where it scores some."""
    compared: set[str] = set()
    for name, evaluator in evaluators.items():
        split = scored_split(evaluator)
        if not evaluator.fits or not split:
            continue
        if split == "train":
            raise ValueError(
                f"--{name}.split train: {name} learns from the train split, and would score what it has seen; "
                "want val or test"
            )
        if split in compared:
            continue
        compared.add(split)
        shared = shared_samples(subject.modality, split)
        if shared is None or not shared.copies:
            continue
        pair = f"the first is {shared.scored}, a copy of {shared.trained}"
        if shared.copies == shared.total:
            raise ValueError(
                f"the {split} split holds nothing but training samples ({shared.total:,} of {shared.total:,}; {pair}): "
                "a score on it says nothing; name data whose splits differ"
            )
        log.warning(
            "%d of %d samples of the %s split are copies of training samples (%s)",
            shared.copies, shared.total, split, pair,
        )  # fmt: skip


def _finished(
    subject: Subject, protocols: Protocols, measured: dict[str, Measured], verdict: Verdict, began: float
) -> Evaluation:
    """Return an evaluation with its record, which a run keeps; where it cannot be written, say so."""
    metrics = _prefixed({n: m.figures | m.baselines for n, m in measured.items()})
    if subject.untrained:
        metrics |= _prefixed({f"{n}/{UNTRAINED}": m.untrained for n, m in measured.items()})
    record = {
        "time": now(),
        "place": subject.place,
        "step": subject.step,
        "protocols": {name: to_dict(cfg) for name, cfg in protocols.items()},
        "figures": {
            f"{name}/{figure}": _figure(name, each, figure, value)
            for name, each in measured.items()
            for figure, value in (each.figures | each.baselines).items()
        },
        "verdict": verdict.text,
        "data": identity_of(subject.modality, with_validation=True).summary(),
        "weights": subject.weights(),
        "seed": subject.seed,
        **({"of": subject.about} if subject.about else {}),
        "seconds": round(time.monotonic() - began, 1),
        **environment(subject.device),
    }
    if subject.run is not None:
        try:
            subject.run.add_evaluation(record)
        except (NotWritten, Damaged) as error:
            log.warning("these figures are not kept: %s", error)
    return Evaluation(metrics=metrics, verdict=verdict, measured=measured, record=record)


def _figure(name: str, each: Measured, figure: str, value: float) -> dict[str, Any]:
    """Return a figure as it is recorded; one of the encoder with its protocol and what it has to beat."""
    if figure not in each.figures:
        return _value(value)
    headline = figure == next(iter(each.figures))
    floors = {n: _value(v) for n, v in each.baselines.items()} if headline else {}
    if figure in each.untrained:
        floors[UNTRAINED] = _value(each.untrained[figure])
    return {**_value(value), "floors": floors, **choosing.described(each.evaluator)}


def _value(value: float) -> dict[str, Any]:
    return {"value": finite(value)} | (
        value.to_json(with_scores=False) if isinstance(value, Estimate) else {}
    )


def write(evaluation: Evaluation, out: Path) -> None:
    """Write the record of an evaluation as a file of JSON."""
    make_folder(out.parent)
    replace_text(out, json.dumps(evaluation.record, indent=1))


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None for one that is not finite."""
    return float(value) if math.isfinite(value) else None
