from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from multissl.contract.learning import Figure
from multissl.report.charts import apart, chart, nice_ticks, short, stretched, tick_labels
from multissl.report.page import MOST_NOTES, page
from multissl.run.report import Drawn, write_report

LINES: list[dict[str, Any]] = [
    {"kind": "eval", "step": 0, "knn/top1": 30.0, "knn/raw": 34.0, "knn/hog": 52.0, "collapse/width": 192},
    *({"kind": "train", "step": s, "loss": 5.0 / s, "terms/ibot": 1.0, "gradient_norm/objective.head": 0.1 * s,
       "gradient_norm/encoder": 2.0, "lr": 1e-3, "unreadable": 1} for s in range(1, 9)),
    {"kind": "note", "step": 4, "text": "sample <b>7</b> & co cannot be read"},
    {"kind": "eval", "step": 8, "knn/top1": 81.2, "knn/student/top1": 75.5, "collapse/width": 192},
]  # fmt: skip
TITLES = {"knn/top1": "k-NN accuracy, %", "collapse/width": "width of the features"}
SUMMARY = {
    "verdict": "learned: k-NN 81.2 %", "learned": True, "environment": {"torch": "2.10", "ranks": 1},
    "difference": ["steps: 100 -> 8"], "steps": 8, "seconds": 12.5,
}  # fmt: skip


def run_folder(folder: Path, lines: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.json").write_text(json.dumps({"steps": 8, "objective": {"kind": "dino"}}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def svgs(page: str) -> dict[str, ElementTree.Element]:
    """Every chart by its title, parsed: a chart that is no XML fails here."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {svg.attrib["aria-label"]: svg for svg in found}


def texts(svg: ElementTree.Element) -> list[str]:
    return [t.text or "" for t in svg.iter("text")]


def test_the_page_tells_everything_and_the_verdict_first(tmp_path: Path) -> None:
    figure = Figure("Views", np.full((4, 6, 3), 200, np.uint8), "four samples")
    path = write_report(run_folder(tmp_path, LINES, SUMMARY), Drawn(figures=[figure], titles={}))
    page = path.read_text()
    assert path == tmp_path / "report.html"
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Figures", "Evaluation", "Training", "Pictures", "Notes", "Environment",
        "What differs from the recipe's default",
    ]  # fmt: skip
    assert page.index('class="verdict learned">learned: k-NN 81.2 %') < page.index("<h2>")
    assert "steps: 100 -&gt; 8" in page
    assert "four samples" in page
    assert "<td>torch</td><td>2.10</td>" in page
    assert "&quot;kind&quot;: &quot;dino&quot;" in page
    assert not list(tmp_path.glob("*.tmp"))


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    figure = Figure("Views", np.zeros((2, 2, 3), np.uint8))
    page = write_report(run_folder(tmp_path, LINES, SUMMARY), Drawn(figures=[figure], titles={})).read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert all(s.startswith("data:") for s in re.findall(r'(?:src|href)="(.*?)"', page))
    assert "default-src 'none'" in page


def test_what_is_exported_stands_beside_the_student_and_above_the_baselines(tmp_path: Path) -> None:
    charts = svgs(write_report(run_folder(tmp_path, LINES), Drawn(titles=TITLES)).read_text())
    knn = charts["k-NN accuracy, %"]
    assert {"exported 81.2", "student 75.5", "raw 34", "hog 52"} <= set(texts(knn))
    assert len([e for e in knn.iter("line") if e.get("class") == "baseline"]) == 2
    assert "width of the features" not in charts  # a constant
    assert not any("raw" in title for title in charts)


def test_figures_stand_side_by_side(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path, LINES), Drawn(titles=TITLES)).read_text()
    cells = ("k-NN accuracy, %", "30", "81.2", "75.5", "raw 34, hog 52")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_figures_have_their_interval_and_n_where_the_record_knows_them(tmp_path: Path) -> None:
    known = {"n": 1000, "low": 78.7, "high": 83.5, "scores": "bits:"}
    unknown = {"n": 3, "low": None, "high": None}
    more = [
        {
            "kind": "estimates",
            "step": 0,
            "knn/raw": {**known, "low": 31.1, "high": 37.0},
            "knn/top1": unknown,
        },
        {"kind": "estimates", "step": 8, "knn/top1": known},
    ]
    page = write_report(run_folder(tmp_path, [*LINES, *more]), Drawn(titles=TITLES)).read_text()
    cells = (
        "k-NN accuracy, %", "30", "81.2 (78.7 to 83.5, n=1,000)", "75.5", "raw 34 (31.1 to 37, n=1,000), hog 52",
    )  # fmt: skip
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_what_cannot_be_told_is_neither_good_nor_bad(tmp_path: Path) -> None:
    summary = {**SUMMARY, "verdict": "cannot be told: x", "learned": False, "outcome": "cannot be told"}
    page = write_report(run_folder(tmp_path, LINES, summary)).read_text()
    assert 'class="verdict">cannot be told: x' in page


def test_gradient_norms_share_a_chart_and_terms_have_their_own(tmp_path: Path) -> None:
    charts = svgs(write_report(run_folder(tmp_path, LINES)).read_text())
    assert {"loss", "ibot", "gradient norm", "learning rate"} <= set(charts)
    assert {"head 0.8", "encoder 2"} <= set(texts(charts["gradient norm"]))


def test_operations_that_ran_stand_beside_those_of_the_architecture(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": s, "samples": 8 * s, "tflops": 1.0 * s, "nominal_tflops": 2.0 * s}
        for s in (1, 2)
    ]
    page = write_report(run_folder(tmp_path, lines, SUMMARY)).read_text()
    assert set(svgs(page)) == {"operations, TFLOP/s"}
    assert {"what ran 2", "the whole architecture 4"} <= set(texts(svgs(page)["operations, TFLOP/s"]))
    assert re.search(r"samples seen</td>\s*<td[^>]*>16<", page)
    same = [{**x, "nominal_tflops": x["tflops"]} for x in lines]
    page = write_report(run_folder(tmp_path, same, SUMMARY)).read_text()
    assert set(svgs(page)) == {"operations, TFLOP/s"}
    assert "the whole architecture" not in page


def test_what_the_run_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    summary = {**SUMMARY, "verdict": "<script>alert(1)</script>"}
    figure = Figure('"><script>', np.zeros((2, 2, 3), np.uint8), "<i>")
    page = write_report(run_folder(tmp_path, LINES, summary), Drawn(figures=[figure], titles={})).read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert "sample &lt;b&gt;7&lt;/b&gt; &amp; co cannot be read" in page


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path, LINES[:4])).read_text()
    assert 'class="verdict">not finished: 3 of 8 steps so far' in page


def test_a_run_of_the_default_says_that_nothing_differs(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path, LINES, {**SUMMARY, "difference": []})).read_text()
    assert "default</h2><pre>nothing</pre>" in page


def test_a_run_without_a_line_still_has_a_page(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert "not finished: 0 of ? steps" in page
    assert "<h2>" not in page


def test_values_that_were_not_finite_are_gaps(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": s, "loss": None if s == 2 else 1.0 * s} for s in (1, 2, 3)]
    loss = svgs(write_report(run_folder(tmp_path, lines)).read_text())["loss"]
    (curve,) = loss.iter("polyline")
    assert len(curve.attrib["points"].split()) == 2


def test_a_long_list_of_notes_is_cut_and_says_so(tmp_path: Path) -> None:
    notes = [{"kind": "note", "step": s, "text": "skipped"} for s in range(MOST_NOTES + 3)]
    page = write_report(run_folder(tmp_path, notes)).read_text()
    assert page.count("<li>") == MOST_NOTES
    assert "and 3 more in metrics.jsonl" in page


def test_a_chart_stays_inside_its_frame() -> None:
    svg = svgs(chart("x", {"a": [(0, -3.0), (10, 4e5)], "b": [(0, 1.0), (10, 3e5)]}, {"raw": 2e5}))["x"]
    for curve in svg.iter("polyline"):
        for pair in curve.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 320
            assert 0 <= y <= 170


@pytest.mark.parametrize("points", [[(5, 2.0)], [(5, 0.0), (6, 0.0)], [(1, -4.0), (2, -4.0)]])
def test_a_lone_or_constant_value_is_drawn(points: list[tuple[int, float]]) -> None:
    assert len(list(svgs(chart("x", {"": points}))["x"].iter("polyline"))) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.6, 0.9), (411.0, 412.5), (1e-7, 3e-4), (-5e6, 2.0)]
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    assert 3 <= len(ticks) <= 6
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high"), [(1.701, 1.703), (0.0, 1.5e-4), (-5e6, 2.0), (0.3831, 0.3839), (20.0, 80.0)]
)
def test_tick_labels_differ_and_fit_the_margin(low: float, high: float) -> None:
    labels = tick_labels(nice_ticks(low, high))
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 6


@pytest.mark.parametrize("value", [1.0, -3.7, 0.011, 812.25, 5e5, 3e7, 1e-8, 0.0])
@pytest.mark.parametrize("span", [1e-16, 1e-12, 3e-9, 2.5e-9, 1e-7, 7e-6, 1.1e-4])
def test_a_nearly_constant_curve_is_drawn(value: float, span: float) -> None:
    moved = value * (1 + span) or 5e-324
    svg = svgs(chart("x", {"": [(0, value), (1, moved), (2, value)]}))["x"]
    (curve,) = svg.iter("polyline")
    assert all(0 <= float(pair.split(",")[1]) <= 170 for pair in curve.attrib["points"].split())
    ticks = [t.text or "" for t in svg.iter("text") if t.get("text-anchor") == "end"][
        :-1
    ]  # the last is a step
    assert len(set(ticks)) == len(ticks) >= 3


def test_long_curves_become_means_between_their_extremes() -> None:
    points = [(s, float(s % 2)) for s in range(10_000)]
    parts = stretched(points)
    assert 100 <= len(parts) <= 160
    assert all(low == 0 and high == 1 and 0.4 < mean < 0.6 for _, mean, low, high in parts)
    assert stretched(points[:50]) == [(s, v, v, v) for s, v in points[:50]]


def test_labels_do_not_cover_each_other() -> None:
    placed = [
        height for height, *_ in apart([(50.0, "a", ""), (52.0, "b", ""), (49.0, "c", ""), (160.0, "d", "")])
    ]
    assert all(b - a >= 12 for a, b in pairwise(sorted(placed)))
    assert all(0 <= height <= 170 for height in placed)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (81.24, "81.2"), (0.00012, "1.2e-4"), (12345.6, "12,346"), (2.5e6, "2.5e6")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


EVIL = "</pre><script>alert(1)</script><b onclick='x' \"&"


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    """Names of classes, captions, options, notes: whoever made the run or the data wrote them."""
    lines: list[dict[str, Any]] = [
        *({**line, f"terms/{EVIL}": 1.0, f"knn/{EVIL}": 2.0} for line in LINES),
        {"kind": "note", "step": EVIL, "text": EVIL},
        {"kind": "note", "step": 3, "text": EVIL},
        {"kind": "alarm", "step": 4, "text": EVIL},
    ]
    summary = {**SUMMARY, "verdict": EVIL, "environment": {EVIL: EVIL}, "difference": [EVIL], "alarm": EVIL}
    folder = tmp_path / "run <script>alert(1)<script>"
    folder.mkdir()
    run_folder(folder, lines, summary)
    (folder / "recipe.json").write_text(json.dumps({EVIL: EVIL, "objective": {"kind": EVIL}}))
    figure = Figure(EVIL, np.full((4, 6, 3), 200, np.uint8), EVIL)
    page = write_report(folder, Drawn(figures=[figure], titles={f"knn/{EVIL}": EVIL})).read_text()
    assert "<script" not in page
    assert "onclick='x'" not in page
    assert page.count("&lt;script") > 10


def test_upright_lines_mark_where_stages_begin_and_a_table_says_what_changes() -> None:
    lines = [{"kind": "train", "step": s, "loss": float(s)} for s in (1, 4, 8)]
    stages = [{"name": "<high>", "steps": 4, "changes": {"modality.size": 64}}]
    text = page("run", recipe={"steps": 4, "stages": stages}, lines=lines, summary={})
    assert "not finished: 8 of 8 steps" in text
    (border,) = [x for x in svgs(text)["loss"].iter("line") if x.get("class") == "border"]
    assert border[0].text == "stage <high>"
    assert "modality.size=64" in text
    assert "4 to 8" in text
    hostile = page("run", recipe={"steps": "4", "stages": [{"name": 3}]}, lines=lines, summary={})
    assert "<h2>Stages" not in hostile
