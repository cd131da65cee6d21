"""The page of a run: one text of HTML with everything inside it, which opens without a network.

It is made from plain values, the options, the lines of the record, the summary, and from figures; it reads no file of
the run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from multissl.contract.learning import Figure
from multissl.report.charts import Points, chart, short
from multissl.report.document import document, picture, table, wrapped
from multissl.shapes import STAGE, is_count, is_line

Line = dict[str, Any]
"""A line of a run's record: its kind, its step and values by name."""
TITLES = {
    "lr": "learning rate", "samples_per_s": "samples per second", "waiting_percent": "waiting for data, % of time",
    "gradient_max": "largest entry of the gradient", "memory_gib": "memory, GiB", "samples": "samples seen",
    "tflops": "operations, TFLOP/s", "utilization_percent": "operations, % of the device's peak",
    "watts": "power of the first device, W", "joules_per_sample": "energy of a sample, J",
}  # fmt: skip
"""Of the loop's own metrics; evaluators bring theirs."""
EXPORTED = (
    '<p class="soft">"exported" is the encoder that the run ships: the teacher, where there is one.</p>'
)
NOMINAL = "nominal_"
"""Before the name of a figure of the whole architecture, without what a step leaves out."""
MOST_NOTES = 30


def page(
    name: str,
    *,
    recipe: Mapping[str, Any],
    lines: Sequence[Line],
    summary: Mapping[str, Any],
    figures: Sequence[Figure] = (),
    titles: Mapping[str, str] | None = None,
    evaluations: Sequence[Line] = (),
    sessions: Sequence[Line] = (),
) -> str:
    """Return the page of a run of that name; a run without a summary has not finished.

    `evaluations` are what was measured later, `sessions` the starts of the run.
    `titles` says what evaluators call their metrics in the page, by the name in the record.
    """
    titles = {**TITLES, **(titles or {})}
    lines = [x for x in lines if is_line(x)]
    steps = max((x["step"] for x in lines), default=0)
    stages = _stages(recipe)
    total = sum(steps for _, steps, _ in stages) if stages else recipe.get("steps", "?")
    verdict = str(summary.get("verdict") or f"not finished: {steps} of {total} steps so far")
    mood = {True: " learned", False: " not"}.get(summary.get("learned", ""), "")
    if summary.get("outcome") == "cannot be told":
        mood = ""
    sections = {
        **_sections(lines, summary, figures, titles, _borders(stages)),
        "Measured later": _later(evaluations, titles),
        "Stages": _stage_table(stages),
        "Sessions": _sessions(sessions),
    }
    options = f"<details><summary>Recipe</summary><pre>{escape(json.dumps(recipe, indent=2))}</pre></details>"
    return document(f"multissl run {name}", verdict, sections, mood=mood, last=options)


def _stages(recipe: Mapping[str, Any]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Return name, steps and changes of the stages of a run, the first one included; [] of a run without any."""
    listed = recipe.get("stages")
    if not (
        isinstance(listed, list) and listed and all(map(STAGE, listed)) and is_count(recipe.get("steps"))
    ):
        return []
    return [("first", recipe["steps"], {}), *((x["name"], x["steps"], x.get("changes", {})) for x in listed)]


def _borders(stages: Sequence[tuple[str, int, Mapping[str, Any]]]) -> dict[int, str]:
    """Return the steps at which stages begin, with their names, but for the first."""
    ends = itertools.accumulate(steps for _, steps, _ in stages)
    return {end: f"stage {name}" for end, (name, _, _) in zip(ends, stages[1:], strict=False)}


def _stage_table(stages: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    """Return a table of the stages: their steps in the run and what changes; upright lines in charts are its rows."""
    rows, start = [["stage", "steps", "changes"]] * bool(stages), 0
    for name, steps, changes in stages:
        text = ", ".join(f"{option}={json.dumps(value)}" for option, value in changes.items())
        rows.append([escape(name), f"{start:,} to {start + steps:,}", escape(text)])
        start += steps
    return table(rows)


def _sections(
    lines: Sequence[Line],
    summary: Mapping[str, Any],
    figures: Sequence[Figure],
    titles: Mapping[str, str],
    borders: Mapping[int, str],
) -> dict[str, str]:
    """Return the sections on the training, by heading."""
    kinds = ("train", "eval", "estimates", "note", "alarm")
    train, evals, estimates, notes, alarms = ([x for x in lines if x["kind"] == kind] for kind in kinds)
    facts = summary.get("environment", {}) | {k: summary[k] for k in ("steps", "seconds") if k in summary}
    facts |= (
        {TITLES["samples"]: f"{train[-1]['samples']:,}"}
        if train and train[-1].get("samples") is not None
        else {}
    )
    changes = "\n".join(summary.get("difference", ())) or "nothing"
    return {
        "Alarms": _notes([{**a, "text": a["text"] or "what raised the alarm is over"} for a in alarms]),
        "Figures": _metrics(evals, estimates, titles),
        "Evaluation": wrapped("charts", _eval_charts(evals, titles, borders))
        + EXPORTED * any("/student/" in n for x in evals for n in x),
        "Training": wrapped("charts", _train_charts(train, titles, borders)),
        "Pictures": wrapped("figures", (picture(f.image, f.title, f.caption) for f in figures)),
        "Notes": _notes(notes),
        "Environment": table([[escape(str(k)), escape(str(v))] for k, v in facts.items()]),
        "What differs from the recipe's default": f"<pre>{escape(changes)}</pre>" if summary else "",
    }


def _eval_charts(evals: list[Line], titles: Mapping[str, str], borders: Mapping[int, str]) -> Iterable[str]:
    """Draw a chart for each metric: exported beside student; dashed, at an evaluator's first one, its baselines."""
    baselines, series = _baselines(evals), _series(evals)
    hidden = {f"{evaluator}/{name}" for evaluator, each in baselines.items() for name in each}
    for name, points in series.items():
        evaluator, _, metric = name.partition("/")
        constant = len({value for _, value in points}) < 2 and "top1" not in metric  # as the width is
        if name in hidden or metric.startswith("student/") or (constant and len(points) > 1):
            continue
        student = series.get(f"{evaluator}/student/{metric}")
        lines = {"exported": points, "student": student} if student else {"": points}
        yield chart(_title(name, titles), lines, baselines.pop(evaluator, {}), borders)


def _train_charts(train: list[Line], titles: Mapping[str, str], borders: Mapping[int, str]) -> Iterable[str]:
    """Draw a chart for each metric; the gradient norms of several modules share one."""
    charts: dict[str, dict[str, Points]] = {}
    for name, points in _series(train).items():
        group, _, part = name.partition("/")
        # encoders.image and objective.dino_head are known by their last part
        title, line = (group, part.rpartition(".")[2]) if group == "gradient_norm" else (name, "")
        charts.setdefault(title, {})[line] = points
    for name in [n for n in charts if n.startswith(NOMINAL)]:
        nominal, ran = charts.pop(name)[""], charts[name.removeprefix(NOMINAL)]
        if nominal != ran[""]:
            ran |= {"what ran": ran.pop(""), "the whole architecture": nominal}
    charts.pop("unreadable", None)  # the notes say which
    charts.pop("samples", None)  # a straight line; their number is among the facts
    for title, lines in charts.items():
        shown = lines if len(lines) > 1 else {"": next(iter(lines.values()))}
        yield chart(_title(title, titles), shown, borders=borders)


def _metrics(evals: list[Line], estimates: list[Line], titles: Mapping[str, str]) -> str:
    """Return a table: every metric of the untrained and the trained encoder, beside the baselines of its evaluator.

    Each has its n and its 95 % interval where they are known.
    """
    if not evals:
        return ""
    known = {line["step"]: line for line in estimates}

    def cell(line: Line, name: str) -> str:
        value, more = line.get(name), known.get(line.get("step", -1), {}).get(name)
        if value is None or more is None or more["low"] is None:
            return "" if value is None else short(value)
        return f"{short(value)} ({short(more['low'])} to {short(more['high'])}, n={more['n']:,})"

    baselines, first, last = _baselines(evals), evals[0] if len(evals) > 1 else {}, evals[-1]
    student = "student" if any("/student/" in name for name in last) else ""
    rows = [["", "untrained", f"step {last['step']:,}", student, "without learning" if baselines else ""]]
    for name in (n for n in last if n not in ("kind", "step") and "/student/" not in n):
        evaluator, _, metric = name.partition("/")
        values = [cell(first, name), cell(last, name), cell(last, f"{evaluator}/student/{metric}")]
        beside = ", ".join(f"{n} {cell(first, f'{evaluator}/{n}')}" for n in baselines.pop(evaluator, {}))
        rows.append([escape(_title(name, titles)), *values, escape(beside)])
    return table(rows)


def _later(evaluations: Sequence[Line], titles: Mapping[str, str]) -> str:
    """Return a table of what was measured when the training was over, or beside it; a row for each figure."""
    rows = []
    for line in evaluations:
        for name, value in line.get("figures", {}).items():
            text = "not a number" if value["value"] is None else short(value["value"])
            if value.get("low") is not None and value.get("high") is not None:
                text += f" ({short(value['low'])} to {short(value['high'])}, n={value['n']:,})"
            rows.append([f"{line.get('time', '')}, step {line.get('step')}", _title(name, titles), text])
    return table([[escape(cell) for cell in row] for row in rows])


def _sessions(sessions: Sequence[Line]) -> str:
    """Return a table of the starts of the run, where there was more than one."""
    if len(sessions) < 2:
        return ""
    rows = [["began", "steps", "seconds", "host", "ranks", "how it ended"]]
    for line in sessions:
        steps = " to ".join(map(str, line.get("steps", ())))
        cells = [line.get("began"), steps, line.get("seconds"), line.get("host"), line.get("ranks")]
        rows.append([escape(str(c)) for c in (*cells, line.get("end") or "going on")])
    return table(rows)


def _series(lines: list[Line]) -> dict[str, Points]:
    """Return (step, value) by name; a value that was not finite, null in the record, is left out."""
    series: dict[str, Points] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                series.setdefault(name, []).append((line["step"], float(value)))
    return series


def _baselines(evals: list[Line]) -> dict[str, dict[str, float]]:
    """Return, by evaluator, the metrics that only the first evaluation has."""
    later = {name for line in evals[1:] for name in line}
    baselines: dict[str, dict[str, float]] = {}
    for name, value in evals[0].items() if len(evals) > 1 else ():
        if name not in later and value is not None:
            evaluator, _, baseline = name.partition("/")
            baselines.setdefault(evaluator, {})[baseline] = value
    return baselines


def _notes(notes: list[Line]) -> str:
    shown = "".join(
        f"<li>step {escape(str(n['step']))}: {escape(str(n['text']))}</li>" for n in notes[:MOST_NOTES]
    )
    rest = len(notes) - MOST_NOTES
    return f"<ul>{shown}</ul>" * bool(shown) + f'<p class="soft">and {rest} more in metrics.jsonl</p>' * (
        rest > 0
    )


def _title(name: str, titles: Mapping[str, str]) -> str:
    return titles.get(name) or name.removeprefix("terms/").removeprefix("stats/").replace("/", " ").replace(
        "_", " "
    )
