"""The steps of an objective are those of before: loss, terms, figures, gradients and slow state, under every option.

Also where samples lack a stream, where one is left or none, and where they are of groups. A new objective joins by
being registered; see tests/helpers/known.py for how numbers are written down. In fp64, so that processors agree.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.config import Config
from multissl.contract.data import Batch, Views
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.learner import Learner
from multissl.verify.small import shrunk
from tests.helpers import rows
from tests.helpers.known import Cases, Numbers, check_known, numbers_of
from tests.helpers.rows import BATCH
from tests.helpers.turned import turned
from tests.numbers.test_views import text_folder
from tests.test_exact import ALWAYS, MODALITIES, VARIANTS, fitting

LIMIT = 1e-5
STEPS = 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_folder(tmp_path_factory.mktemp("texts"))


@functools.cache
def modality(name: str, texts: str) -> Modality:
    made: Any = MODALITIES[name]
    return (made.replace(data=texts) if name in ("padded", "infill") else made).build().fit()


def steps(learner: Learner, batch: Batch) -> Numbers:
    """Return the numbers of two steps of plain descent on one batch; the learner itself stays as it is."""
    learner = copy.deepcopy(learner).train()
    tensors: dict[str, Tensor] = {}
    for step in range(STEPS):
        torch.manual_seed(step)
        progress = Progress(step=step + 1, total=10, epoch_steps=1)
        losses = learner(batch, progress)
        learner.backward(losses)
        tensors[f"{step} loss"] = losses.total
        tensors |= {f"{step} term {n}": t for n, t in losses.terms.items()}
        tensors |= {f"{step} figure {n}": t for n, t in losses.stats.items()}
        trained = [p for p in learner.parameters() if p.grad is not None]
        tensors[f"{step} gradient"] = flat([p.grad for p in trained if p.grad is not None])
        for parameter in trained:
            assert parameter.grad is not None
            parameter.data.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None
        learner.objective.after_step(learner.encoders, progress)
        tensors[f"{step} state"] = flat([*learner.state_dict().values()])
    rules = learner.objective.param_rules()
    tensors["rules"] = torch.tensor(
        [[len(r.parameters()), r.lr, r.decay, r.frozen_steps, r.constant] for r in rules]
    )
    tensors["exported"] = flat([*learner.objective.exported(learner.encoders).state_dict().values()])
    return numbers_of(tensors)


def flat(tensors: list[Tensor]) -> Tensor:
    """Return all values, but for bytes: a digest of weights is another where these round otherwise."""
    values = (t.detach().double().flatten() for t in tensors if t.dtype != torch.uint8)
    return torch.cat([torch.zeros(1), *values])


def batches(objective: Objective, batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Yield the batch as it is, and with what a step may meet."""
    yield "as it is", batch
    place = torch.arange(BATCH)
    yield "groups", Batch(replace(v, sample_id=place % 12, group_id=place // 2) for v in batch)
    if objective.reads_present:
        for name, present in {
            "holes": place % 3 != 1,
            "two": (place == 5) | (place == 6),
            "one": place == 5,
            "none": place < 0,
        }.items():
            yield name, Batch(replace(v, present=present) for v in batch)
        streams = [*dict.fromkeys(v.stream for v in batch)]
        if len(streams) > 1:
            yield "apart", Batch(apart(v, streams.index(v.stream)) for v in batch)


def apart(views: Views, number: int) -> Views:
    return replace(views, present=(torch.arange(BATCH) + number) % 4 != 1)


def options(name: str) -> Iterator[tuple[str, str, Any]]:
    """Yield an objective's config as it is with every modality, then its others with the first that has a meaning."""
    made = shrunk(registry.resolve(name, "objectives").Config()).replace(**ALWAYS.get(name, {}))
    for modality in fitting(name):
        yield f"{modality}, as it is", modality, made
    more = [(f"{change}", made.replace(**change)) for change in VARIANTS.get(name, [])]
    if name == "dino":  # heads in which rows see one another
        head = made.head.replace(norm="batch")
        more += [
            (f"batch norm, tied {t}", made.replace(head=head, ibot_head=head, tied_heads=t))
            for t in (False, True)
        ]
    for change, cfg in [*turned(made), *more, *nested(made)]:
        for modality in fitting(name):
            yield f"{change}, {modality}", modality, cfg


def nested(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yield the config with one choice or flag of a teacher, head or decoder turned."""
    for field in dataclasses.fields(cfg):
        part = getattr(cfg, field.name)
        if isinstance(part, Config):
            for change, other in turned(part, numbers=field.name == "teacher"):
                yield f"{field.name}.{change}", cfg.replace(**{field.name: other})


def takes_another_path(change: str) -> bool:
    """Return whether an option's value is a choice or a flag of the objective's own, and no number."""
    option, _, value = change.partition("=")
    return "." not in option and not value[:1].isdigit() and not value.startswith(("(", "-"))


def cases(name: str, texts: str) -> Cases:
    every: Cases = {}
    done: set[str] = set()
    for label, where, cfg in options(name):
        change = label.rpartition(", ")[0]
        if change in done:
            continue
        try:
            learner, batch = rows.learner_and_batch(modality(where, texts), cfg)
            plain = "as it is" in label
            for kind, each in batches(learner.objective, batch):
                if plain or kind == "as it is" or (kind == "holes" and takes_another_path(change)):
                    every[f"{label}, {kind}"] = steps(learner, each)
        except (ValueError, NotImplementedError):
            continue
        if not plain:
            done.add(change)
    return every


@pytest.mark.parametrize("name", registry.names("objectives"))
def test_the_steps_of_an_objective_are_those_of_before(name: str, texts: str) -> None:
    check_known(f"steps_{name}", functools.partial(cases, name, texts), LIMIT)
