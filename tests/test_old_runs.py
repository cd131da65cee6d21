"""Runs of earlier versions are read by this one: loaded, encoded, evaluated and reported, with the features they had.

A folder of `tests/old_runs/formatN` is a tiny run of each modality as the version with recipe format N left it, and
`features.json`, the first features of three validation samples that this version computed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import multissl
from multissl import cli
from multissl.inference import readable_views
from multissl.run.evaluate import evaluate
from multissl.run.report import report

FOLDERS = sorted(p.parent for p in (Path(__file__).parent / "old_runs").glob("*/*/recipe.json"))
NEEDS = {"audio": "torchaudio", "video": "decord", "text": "tokenizers", "image_text": "tokenizers"}


@pytest.fixture(params=FOLDERS, ids=lambda p: f"{p.parent.name}-{p.name}")
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source: Path = request.param
    if source.name in NEEDS:
        pytest.importorskip(NEEDS[source.name])
    return Path(shutil.copytree(source, tmp_path / source.name))


def test_its_features_are_those_it_had(folder: Path) -> None:
    model = multissl.load(folder)
    expected = json.loads((folder / "features.json").read_text())
    assert set(expected) == set(model.modality.streams())
    for stream, rows in expected.items():
        data = model.modality.dataset("val")
        views, _ = readable_views(model.modality, [data[i] for i in range(3)], stream)
        with torch.inference_mode():
            pooled = model.encoders.encode([views])[0].pooled
        torch.testing.assert_close(pooled[:, :8], torch.tensor(rows), atol=2e-4, rtol=1e-3)


def test_it_is_evaluated_and_reported(folder: Path) -> None:
    figures = evaluate(folder)
    assert figures
    assert "<svg" in report(folder).read_text()


def test_its_samples_are_encoded(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    assert cli.main(["encode", str(folder), "--out", str(out), "--split", "val"]) == 0
    assert len(out.read_text().splitlines()) > 10
