"""The page of an examination, and the list of samples it names.

State: none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from multissl.doctor.examination import Examination
from multissl.report.document import document, picture, table, wrapped

NAMED = 200
"""Samples that the page names for one finding; the list beside it has all."""


def page(name: str, examination: Examination) -> str:
    """Return the page of data of that name."""
    findings = examination.findings
    verdict = (
        f"{len(findings)} findings in {examination.looked_at:,} {examination.plural}"
        if findings
        else f"nothing wrong was found in {examination.looked_at:,} {examination.plural}"
    )
    facts = [[escape(title), escape(value)] for title, value in examination.facts()]
    pictures = [picture(image, f"sample {i + 1}") for i, image in enumerate(examination.pictures)]
    sections = {
        "What is wrong": table([[escape(f.kind), escape(f.text)] for f in findings]),
        "What it holds": table(facts),
        "Said while it was read": "".join(f"<p>{escape(text)}</p>" for text in examination.said),
        "As an encoder sees it": wrapped("figures", pictures),
        "What to do next": "".join(f"<pre>{escape(line.strip())}</pre>" for line in examination.advice),
        "Which samples": "".join(_named(f.kind, f.names) for f in findings if f.names),
    }
    return document(f"multissl data {name}", verdict, sections, mood=" not" if findings else " learned")


def _named(kind: str, names: Sequence[str]) -> str:
    more = f"\nand {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    text = "\n".join(names[:NAMED]) + more
    return f"<details><summary>{escape(kind)}: {len(names):,}</summary><pre>{escape(text)}</pre></details>"


def sample_list(examination: Examination) -> str:
    """Return a table of text, a line for every sample that a finding names: its kind and the sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["finding", "sample"])
    for finding in examination.findings:
        writer.writerows([finding.kind, name] for name in finding.names)
    return text.getvalue()
