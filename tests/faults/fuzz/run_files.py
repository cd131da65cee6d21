"""The files of a run and recipes, as formats.

The run is one of an older version, whose files hold no digests: so the parsers are reached, and not only the digests.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from multissl.files import sealed
from tests.faults.fuzz.formats import ROOT, Format

RUN = ROOT / "tests" / "old_runs" / "format1" / "tabular"
ENTRY = {"from_step": 0, "splits": {"train": {"count": 3, "sha256": "0", "sum": "0", "names": "0"}}}
PART = {"file": "rank_00000.safetensors", "offset": [0]}
INDEX = {
    "tensors": {"a": {"shape": [2], "dtype": "torch.float32", "parts": [PART]}},
    "values": {"modality": {}, "optimizer/groups": []},
}  # fmt: skip
META = {"format": 3, "step": 7, "files": {}, "record": {"bytes": 0, "sha256": "0" * 64}}


def in_run(name: str, how: str, path: Path) -> None:
    """Read a run one of whose files is the one given."""
    from multissl.engine import checkpoint
    from multissl.parallel.state import read_index
    from multissl.run import identity
    from multissl.run.folder import RunFolder
    from multissl.run.model import load
    from multissl.run.report import write_report

    folder = path.with_name(path.stem)
    shutil.copytree(RUN, folder, ignore=shutil.ignore_patterns("checkpoints"))
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    run = RunFolder(folder)
    try:
        if how == "load":
            load(folder)
        elif how == "report":
            write_report(folder)
        elif how == "data":
            identity.check_data(run, identity.Identity({}), step=5, accept=False, plural="rows")
        elif how == "sessions":
            run.read_options()
        elif how == "evaluations":
            run.read_evaluations()
        elif how == "index":
            read_index(place.parent)
        elif how == "meta":
            checkpoint.check(place.parent)
    finally:
        shutil.rmtree(folder)


def read_recipe_file(path: Path) -> None:
    from multissl.recipe import read_recipe

    read_recipe(path)


def read_weights_file(path: Path) -> None:
    from multissl.weights.files import read_weights

    read_weights(path)


def read_tokenizer(path: Path) -> None:
    from multissl.modalities.text.tokenizer import load_tokenizer

    load_tokenizer(str(path))


def run_file(name: str, how: str, body: bytes = b"") -> Format:
    body = body or (RUN / name).read_bytes()
    return Format(
        suffix=f".{Path(name).name}",
        bodies=[body],
        read=functools.partial(in_run, name, how),
        text=not name.endswith(".safetensors"),
    )


def lines(values: dict[str, Any]) -> bytes:
    return 3 * (json.dumps(sealed(values)) + "\n").encode()


def formats() -> dict[str, Format]:
    """Return the formats of a run's files, by their names."""
    import torch
    import yaml
    from safetensors.torch import save

    from multissl.modalities.text.tokenizer import train_bpe

    recipe = (RUN / "recipe.json").read_bytes()
    plain = {"format": 1, "entries": [ENTRY]}
    spec = train_bpe(["some words to train a vocabulary on"] * 5, 300).spec["tokenizer"].encode()
    tensors = save({"a": torch.randn(4, 3), "b.c": torch.arange(5)})
    as_yaml = yaml.safe_dump(json.loads(recipe)).encode()
    checkpoint = "checkpoints/step_00000007"
    return {
        "recipe_json": Format(suffix=".json", bodies=[recipe], read=read_recipe_file, text=True),
        "recipe_yaml": Format(suffix=".yaml", bodies=[as_yaml], read=read_recipe_file, text=True),
        "safetensors": Format(suffix=".safetensors", bodies=[tensors], read=read_weights_file),
        "tokenizer": Format(suffix=".json", bodies=[spec], read=read_tokenizer, text=True),
        "run_recipe": run_file("recipe.json", "load"),
        "run_modality": run_file("modality.json", "load"),
        "run_encoder": run_file("encoder.safetensors", "load"),
        "run_summary": run_file("summary.json", "load"),
        "run_metrics": run_file("metrics.jsonl", "report"),
        "run_data": run_file("data.json", "data", json.dumps(plain, indent=1).encode()),
        "run_sessions": run_file("sessions.jsonl", "sessions", lines({"changed": {"steps": 3}})),
        "run_evaluations": run_file("evaluations.jsonl", "evaluations", lines({"step": 3})),
        "checkpoint_state": run_file(f"{checkpoint}/state.json", "index", json.dumps(INDEX).encode()),
        "checkpoint_meta": run_file(f"{checkpoint}/meta.json", "meta", json.dumps(sealed(META)).encode()),
    }
