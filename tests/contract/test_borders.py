"""The borders of the engine are typed: a misspelt call, attribute or build is an error of the type checker.

Pyright reads one small file of a function per call, as the engine would write it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """\
from multissl.contract.data import Batch, Sample, Views
from multissl.contract.encoder import Encoder, EncodeFunction, Encoders
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.learner import Learner
from multissl.engine.trainer import Trainer
from multissl.modalities.image.adapter import Image
from multissl.random import RowRandom
from multissl.recipe import Recipe

"""
RIGHT = {
    "objective": "def f(objective: Objective, encoders: Encoders, progress: Progress) -> None:\n"
    "    objective.after_step(encoders, progress)\n",
    "objective, its call": "def f(objective: Objective, e: Encoders, b: Batch, p: Progress) -> object:\n"
    "    return objective(e, b, progress=p)\n",
    "objective, what it returns": "def f(objective: Objective, e: EncodeFunction, b: Batch, p: Progress) -> object:\n"
    "    return objective.forward(e, b, p).terms\n",
    "objective, in the learner": "def f(learner: Learner, encoders: Encoders) -> object:\n"
    "    return learner.objective.exported(encoders)\n",
    "modality": "def f(modality: Modality) -> object:\n    return modality.dataset('train')[0].label\n",
    "modality, an argument": "def f(modality: Modality, samples: list[Sample], rng: RowRandom) -> object:\n"
    "    return modality.collate(samples, plans={}, rng=rng)\n",
    "modality, in the trainer": "def f(trainer: Trainer) -> object:\n    return trainer.modality.streams()\n",
    "encoder": "def f(encoder: Encoder, views: Views) -> object:\n    return encoder.figures(views)\n",
    "encoder, what it returns": "def f(encoders: Encoders, views: Views) -> object:\n"
    "    return encoders.encode([views], 'replace')[0].pooled\n",
    "encoder, a masking": "def f(encoder: Encoder, views: Views) -> object:\n"
    "    return encoder([views], masking='drop')\n",
    "evaluator": "def f(evaluator: Evaluator, e: FrozenEncoders, m: Modality, p: Progress) -> object:\n"
    "    return evaluator.run(e, m, progress=p)\n",
    "evaluator, in the trainer": "def f(trainer: Trainer) -> object:\n"
    "    return [e.measures_student for e in trainer.measuring.evaluators.values()]\n",
    "objective, an attribute": "def f(objective: Objective) -> object:\n    return objective.reads_tokens\n",
    "encoder, an attribute": "def f(encoder: Encoder) -> object:\n    return encoder.depth\n",
    "modality, its options": "def f(image: Image) -> object:\n    return image.cfg.local_size\n",
    "a built modality": "def f(r: Recipe) -> object:\n    return r.modality.build().fit()\n",
    "a built encoder": "def f(r: Recipe, m: Modality) -> object:\n"
    "    return r.encoders['x'].build(m.streams()['x']).load_pretrained()\n",
    "a built objective": "def f(r: Recipe, e: Encoders, m: Modality) -> object:\n"
    "    return r.objective.build(e, streams=m.streams())\n",
    "a built evaluator": "def f(r: Recipe) -> object:\n    return r.evals['x'].build().metric_names()\n",
    "a built optimizer": "def f(r: Recipe, learner: Learner) -> object:\n"
    "    return r.optim.build(learner, rules=[], batch_size=8).torch\n",
}
"""Calls over a border, by which."""
TYPOS = {
    "objective": ("after_step", "after_steps"),
    "objective, its call": ("progress=", "progres="),
    "objective, what it returns": (".terms", ".term"),
    "objective, in the learner": ("exported", "exports"),
    "modality": (".label", ".labels"),
    "modality, an argument": ("plans=", "plan="),
    "modality, in the trainer": ("streams()", "stream()"),
    "encoder": (".figures", ".panels"),
    "encoder, what it returns": (".pooled", ".pool"),
    "encoder, a masking": ("'drop'", "'dropped'"),
    "evaluator": ("progress=", "progres="),
    "evaluator, in the trainer": ("measures_student", "measure_student"),
    "objective, an attribute": ("reads_tokens", "reads_token"),
    "encoder, an attribute": (".depth", ".dept"),
    "modality, its options": ("local_size", "small_size"),
    "a built modality": (".fit()", ".fitt()"),
    "a built encoder": ("load_pretrained", "load_pretraind"),
    "a built objective": ("e, streams=m.streams()", "m.streams(), e"),
    "a built evaluator": ("metric_names", "figur_names"),
    "a built optimizer": ("rules=[]", "rule=[]"),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what pyright finds in a file per call, right or misspelt, by the file's name; one run for all."""
    folder = tmp_path_factory.mktemp("borders")
    for number, (border, text) in enumerate(RIGHT.items()):
        right, wrong = TYPOS[border]
        assert text.count(right) == 1
        (folder / f"right_{number}.py").write_text(HEAD + text)
        (folder / f"wrong_{number}.py").write_text(HEAD + text.replace(right, wrong))
    settings = {
        "include": ["."],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2 * len(RIGHT), done.stdout + done.stderr
    found: dict[str, list[str]] = {path.stem: [] for path in folder.glob("*.py")}
    for each in report["generalDiagnostics"]:
        if each["severity"] == "error":
            found[Path(each["file"]).stem].append(each["message"])
    return found


@pytest.mark.parametrize("border", RIGHT)
def test_a_typo_at_a_border_is_a_type_error(border: str, errors: dict[str, list[str]]) -> None:
    number = list(RIGHT).index(border)
    assert errors[f"right_{number}"] == []
    assert errors[f"wrong_{number}"] != []
