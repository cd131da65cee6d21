"""Every golden test reads every hyperparameter of its case: one that is assumed would let a wrong value pass.

A size needs no reading where a tensor of the case has it, nor a number that a tensor of one element holds. The rest of
what a test does not read is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import Case

SEED = {
    "rng_seed": "seeds the reference's own draws",
    "pseed": "seeds the reference's weights, which are stored",
}
NOT_READ: dict[str, dict[str, str]] = {
    "test_golden_rankme": {"decay": "made the features, which are stored"},
    "test_golden_alpha_req": {"decay": "made the features, which are stored"},
    "test_golden_lidar": {"within": "made the features, which are stored"},
    "test_golden_alpha_req_wls": {"power": "made the features, which are stored"},
    "test_golden_clid": {"noise": "made the features, which are stored"},
    "test_golden_t5_corruption": {"density": "drew the mask, which is stored"},
    "test_golden_mae_loss": {"ratio": "drew the mask, token by token, which is stored"},
    "test_golden_audiomae_loss": {"ratio": "drew the mask, token by token, which is stored"},
    "test_golden_bert_masks": {"rows": "how many rows the reference drew"},
    "test_golden_ema": {"clip": "read by test_golden_clipping_of_each_parameter"},
    "test_golden_clipping_of_each_parameter": {"m": "read by test_golden_ema"},
    "test_golden_ranks": {
        "impl": "which of three implementations of one loss made the numbers",
        "local_loss": "where gradients are gathered, of cases whose gradients are stored whole",
    },
    "test_golden_layouts_of_pictures": {"like": "the case whose tensors a wrapped file holds"},
    "test_golden_layouts_of_clips": {"like": "the case whose tensors a wrapped file holds"},
    "test_golden_layouts_of_texts_and_waves": {"like": "the case whose tensors a wrapped file holds"},
    "test_golden_sigreg": {
        **dict.fromkeys(("scale", "shift"), "made the inputs, which are stored"),
        "step": "drew the directions, which are stored",
    },
    "test_golden_sigreg_on_ranks": {
        "scale": "made the inputs, which are stored",
        "step": "drew the directions, which are stored",
    },
    "test_golden_lejepa": {"scale": "made the inputs, which are stored"},
    "test_golden_phi_s": {"decay": "made the features, which are stored"},
    "test_golden_visreg": dict.fromkeys(("scale", "shift"), "made the inputs, which are stored"),
    "test_golden_simdinov2_patches": {"p": "drew the mask, token by token, which is stored"},
    "test_golden_videomae_table": dict.fromkeys(("rect", "up"), "read by test_golden_sincos_pos_embed"),
}
"""What a test does not read, and why."""


def in_tensors(case: Case, value: Any) -> bool:
    """Whether sizes, or a number, are those of stored tensors."""
    if isinstance(value, list):
        return all(in_tensors(case, each) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    stored = [entry for entries in case.manifest["tensors"].values() for entry in entries.values()]
    if isinstance(value, int) and any(value in entry["shape"] for entry in stored):
        return True
    numbers = [t.item() for t in case.tensors("in").values() if t.numel() == 1]
    return any(abs(number - value) <= 1e-6 * abs(value) for number in numbers)


def unread(case: Case, test: str) -> dict[str, Any]:
    """The hyperparameters that a test has neither read nor met in a tensor, and for which no reason is listed."""
    names = case.hyper.keys() - case.hyper.read - SEED.keys() - NOT_READ.get(test, {}).keys()
    values = {name: dict.__getitem__(case.hyper, name) for name in sorted(names)}
    return {name: value for name, value in values.items() if not in_tensors(case, value)}


@pytest.fixture(autouse=True)
def all_read(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    case = request.node.callspec.params["case"] if "case" in request.fixturenames else None
    if isinstance(case, Case):
        assert not unread(case, request.node.originalname), "not read"
