"""Towers: what objectives over several streams ship, how it is read back, locked and slowed encoders."""

# long file: towers as they are built, shipped, read, locked and slowed share their recipes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multissl.build import Parts, build
from multissl.config import from_dict, to_dict
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Tower, build_encoders, without_heads
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.engine.chunked import Chunked
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.knn import KNN
from multissl.evaluators.retrieval import Retrieval
from multissl.evaluators.zero_shot import ZeroShot
from multissl.inference import clean_streams
from multissl.layers.heads import MLPHead
from multissl.objectives.barlow import BarlowTwins
from multissl.objectives.byol import BYOL
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.siglip import SigLIP
from multissl.objectives.vicreg import VICReg
from multissl.objectives.weighted import Weighted
from multissl.recipe import Recipe
from multissl.run.evaluate import evaluate
from multissl.run.model import load
from multissl.run.train import train
from multissl.verify.small import shrunk
from multissl.weights.loading import load_weights
from tests.evaluators.pairs import NAMES, Facts
from tests.helpers.stubs import Net, Points

HEAD = MLPHead.Config(out=16, layers=1, norm="none")
CPU = torch.device("cpu")


class Normed(Encoder):
    """Symbols looked up and averaged, batch norm, dropout: all that would change a tower that only stands by."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        dim: int = 16

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.table = nn.Embedding(256, cfg.dim)
        self.net = nn.Sequential(nn.Linear(cfg.dim, cfg.dim), nn.BatchNorm1d(cfg.dim), nn.Dropout(0.2))

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        outputs = [self.net(self.table(v.x).mean(1)) for v in views]
        return [Features(pooled=y, tokens=y[:, None]) for y in outputs]


def recipe(**changes: Any) -> Recipe:
    """CLIP on facts, learned in a second."""
    base = Recipe(
        modality=Facts.Config(),
        encoders={"numbers": Net.Config(dropout=0.0), "text": Normed.Config()},
        objective=CLIP.Config(projector=HEAD),
        optim=AdamW.Config(lr=2e-2),
        batch_size=24,
        steps=20,
        save=Save(every=100),
        data=Data(workers=0),
        loggers={},
    )
    return base.replace(**changes)


EVALS = {
    "retrieval": Retrieval.Config(shuffles=199),
    "zero_shot": ZeroShot.Config(templates=("{} 1", "a {}")),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP run with its evaluations."""
    folder = tmp_path_factory.mktemp("clip") / "run"
    evals = {**EVALS, "words": KNN.Config(stream="text", k=(3,))}
    train(recipe(steps=150, evals=evals), folder)
    return folder


def test_a_run_ships_towers_and_reads_them_back(finished: Path) -> None:
    names = load_file(finished / "encoder.safetensors").keys()
    assert {n.split(".")[1] for n in names} == {"encoder", "head"}
    model = load(finished)
    assert all(isinstance(e, Tower) for e in model.encoders.values())
    said = [f"a {NAMES[n % 4]} {n}" for n in range(24)]
    z = model.embed(said, stream="text")
    torch.testing.assert_close(z.norm(dim=1), torch.ones(24))
    numbers = [model.modality.dataset("val")[n].data["numbers"] for n in range(24)]
    found = (model.embed(numbers, stream="numbers") @ z.T).argmax(1)
    assert (found == torch.arange(24)).float().mean() > 0.5
    assert model.encode(numbers).shape == (24, 8)
    assert model.encode(said, stream="text").shape == (24, 16)
    with pytest.raises(ValueError, match="stream='texts' is none of this run's; did you mean text"):
        model.encode(said, stream="texts")


def test_the_figures_of_a_run_are_those_of_its_file(finished: Path) -> None:
    from multissl.run.folder import RunFolder

    lines = [x for x in RunFolder(finished).read_metrics() if x["kind"] == "eval"]
    assert not any("student/" in name for name in lines[-1])
    again = evaluate(finished)
    assert again["retrieval/r1"] > 50
    assert again["zero_shot/top1"] > 50
    for name in ("retrieval/r1", "retrieval/p", "zero_shot/top1", "words/top1"):
        assert again[name] == pytest.approx(lines[-1][name], abs=1e-6), name
    assert lines[0]["retrieval/r1"] < lines[-1]["retrieval/r1"]


def test_the_report_shows_pairs(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert "Nearest pairs, numbers to text" in text
    assert "Retrieval, recall@1" in text


def test_a_run_without_a_shared_space_says_so(tmp_path: Path) -> None:
    from tests.helpers.stubs import recipe as stub

    train(stub().replace(steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match="shares no space between streams: use encode"):
        load(tmp_path / "run").embed([torch.zeros(6)])


# ----------------------------------------------------------------------------------- who ships towers


def built(objective: Any, streams: Sequence[str] = ("numbers", "text")) -> tuple[Any, Any]:
    torch.manual_seed(0)
    specs = {s: spec for s, spec in Facts.Config().build().streams().items() if s in streams}
    encoders = build_encoders({s: Net.Config() for s in specs}, specs)
    return encoders, objective.build(encoders, specs)


PLAIN = BYOL.Config(use_predictor=False)


@pytest.mark.parametrize(
    "cfg", [*(kind.Config() for kind in (CLIP, SigLIP, InfoNCE, VICReg, BarlowTwins)), PLAIN]
)
def test_several_streams_ship_towers_of_the_trained_modules(cfg: Any) -> None:
    encoders, objective = built(shrunk(cfg))
    shipped = objective.exported(encoders)
    for stream, tower in shipped.items():
        assert tower.encoder is encoders[stream]
        assert tower.head is objective.projectors[stream]
    assert not Learner(encoders, objective).has_teacher()
    assert dict(without_heads(shipped).items()) == dict(encoders.items())


@pytest.mark.parametrize("kind", [InfoNCE, VICReg, BYOL, BarlowTwins])
def test_a_lone_stream_ships_its_encoder(kind: Any) -> None:
    encoders, objective = built(shrunk(kind.Config()), ["numbers"])
    assert objective.exported(encoders) is encoders


@pytest.mark.parametrize("export", ["student", "teacher"])
def test_where_predictions_meet_projections_there_is_no_shared_space(export: Any) -> None:
    encoders, objective = built(shrunk(BYOL.Config()).replace(export=export))
    assert not any(isinstance(e, Tower) for e in objective.exported(encoders).values())


def test_a_teacher_ships_its_own_towers() -> None:
    encoders, objective = built(shrunk(PLAIN).replace(export="teacher"))
    shipped = objective.exported(encoders)
    assert shipped["text"].encoder is objective.teacher["encoders"]["text"]
    assert shipped["text"].head is objective.teacher["projectors"]["text"]
    assert Learner(encoders, objective).has_teacher()


def test_a_tower_gives_what_its_encoder_gives_and_where_that_lies() -> None:
    encoders, objective = built(shrunk(CLIP.Config()))
    encoders.eval()
    view = Views(x=torch.randn(3, 28), stream="numbers", role="clean")
    (plain,), (tower,) = encoders.encode([view]), objective.exported(encoders).encode([view])
    assert torch.equal(plain.pooled, tower.pooled)
    assert plain.embedding is None
    torch.testing.assert_close(tower.embedding, objective.projectors["numbers"](plain.pooled))


def test_slip_is_a_weighted_sum() -> None:
    """Two augmented views of one stream beside a clean pair of both; what is shipped are CLIP's towers."""
    slip = Weighted.Config(
        terms={"clip": shrunk(CLIP.Config()), "simclr": shrunk(InfoNCE.Config())},
        streams={"simclr": ("numbers",)},
    )
    encoders, objective = built(slip)
    plans = objective.plans()
    assert (plans["numbers"].num_clean, plans["numbers"].num_global) == (1, 2)
    assert (plans["text"].num_clean, plans["text"].num_global) == (1, 0)
    shipped = objective.exported(encoders)
    assert shipped["numbers"].head is objective.terms["clip"].projectors["numbers"]
    again = from_dict(Weighted.Config, to_dict(slip))
    assert again == slip
    batch = Batch(
        [
            Views(x=torch.randn(6, 28), stream="numbers", role="clean"),
            Views(x=torch.randn(12, 28), stream="numbers", role="global", num_views=2),
            Views(x=torch.randint(99, (6, 8)), stream="text", role="clean"),
        ]
    )
    losses = objective(encoders, batch, Progress(step=0, total=1))
    alone = objective.terms["clip"](encoders.eval(), Batch([batch[0], batch[2]]), Progress(step=0, total=1))
    again = objective(encoders, batch, Progress(step=0, total=1))
    torch.testing.assert_close(again.terms["clip/nce"], alone.terms["nce"])
    assert {"clip/nce", "simclr/nce"} <= losses.terms.keys()
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])


# ------------------------------------------------------------------------------ weights of other runs


def test_an_encoder_starts_from_a_tower_without_its_head(finished: Path) -> None:
    tower = load(finished).encoders["text"]
    assert isinstance(tower, Tower)
    torch.manual_seed(5)
    specs = Facts.Config().build().streams()
    for folder_or_file in (finished, finished / "encoder.safetensors"):
        alone = build_encoders({"text": Normed.Config()}, {"text": specs["text"]})
        load_weights(alone, folder_or_file)
        theirs = tower.encoder.state_dict()
        assert all(torch.equal(t, theirs[n]) for n, t in alone["text"].state_dict().items())


def test_a_tower_that_the_file_lacks_keeps_its_own_weights_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multissl.weights.files import save_weights

    specs = Facts.Config().build().streams()
    configs = {"numbers": Net.Config(), "text": Normed.Config()}
    one = build_encoders(configs, {"numbers": specs["numbers"]})
    save_weights(tmp_path / "one.safetensors", one.state_dict())
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.weights.loading.log.warning", lambda text, *values: said.append(text % values)
    )
    both = build_encoders(configs, specs)
    before = {n: t.clone() for n, t in both["text"].state_dict().items()}
    load_weights(both, tmp_path / "one.safetensors")
    assert "no weights for text" in said[0]
    assert all(torch.equal(t, before[n]) for n, t in both["text"].state_dict().items())
    ours, theirs = (encoders["numbers"].get_parameter("out.weight") for encoders in (both, one))
    assert torch.equal(ours, theirs)


# ---------------------------------------------------------------------------------- locked and slowed


def weights_of(folder: Path, stream: str) -> dict[str, Tensor]:
    state = load_file(folder / "encoder.safetensors")
    return {n: t for n, t in state.items() if n.startswith(f"{stream}.encoder.")}


@pytest.mark.parametrize("chunk", [0, 8])
def test_a_locked_tower_is_the_same_to_the_byte_after_20_steps(tmp_path: Path, chunk: int) -> None:
    """Batch norm, dropout and weight decay are in it; the other tower and both heads learn (LiT)."""
    parts = build(recipe(locked=("text",)), CPU)
    encoders = parts.learner.encoders
    before = {f"text.encoder.{n}": t.clone() for n, t in encoders["text"].state_dict().items()}
    others = {n: t.clone() for n, t in encoders["numbers"].state_dict().items()}
    train(recipe(locked=("text",), chunk=chunk), tmp_path / "run")
    after = weights_of(tmp_path / "run", "text")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
    moved = weights_of(tmp_path / "run", "numbers")
    assert all(not torch.equal(moved[f"numbers.encoder.{n}"], t) for n, t in others.items())


def test_without_the_lock_the_same_run_changes_every_byte(tmp_path: Path) -> None:
    """What the test above would miss if locking did nothing."""
    parts = build(recipe(), CPU)
    before = {n: t.clone() for n, t in parts.learner.encoders["text"].state_dict().items()}
    train(recipe(), tmp_path / "run")
    after = weights_of(tmp_path / "run", "text")
    assert not any(torch.equal(after[f"text.encoder.{n}"], t) for n, t in before.items() if "weight" in n)


def test_a_locked_encoder_has_no_gradient_and_stays_in_evaluation_mode() -> None:
    specs = Facts.Config().build().streams()
    encoders = build_encoders({"text": Normed.Config()}, {"text": specs["text"]})
    encoder = encoders["text"]
    encoder.lock()
    encoders.train()
    assert not any(m.training for m in encoder.modules())
    view = Views(x=torch.randint(99, (4, 8)), stream="text", role="clean")
    (features,) = encoder([view])
    assert not features.pooled.requires_grad
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert torch.equal(encoder([view])[0].pooled, features.pooled)


def test_a_stream_has_a_learning_rate_of_its_own() -> None:
    parts = build(recipe(lr_by_stream={"text": 0.1}), CPU)
    parts.optimizer.step(Progress(step=0, total=10))
    rates = {id(p): g["lr"] for g in parts.optimizer.torch.param_groups for p in g["params"]}
    encoders, objective = parts.learner.encoders, parts.learner.objective
    assert isinstance(objective, CLIP)
    full = rates[id(encoders["numbers"].get_parameter("out.weight"))]
    assert all(rates[id(p)] == pytest.approx(0.1 * full) for p in encoders["text"].parameters())
    assert all(rates[id(p)] == full for p in objective.projectors.parameters())


def test_two_locked_towers_still_learn_their_heads(tmp_path: Path) -> None:
    train(recipe(locked=("text", "numbers"), steps=3), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"locked": ("texts",)}, "locked names 'texts', no stream; did you mean text"),
        ({"lr_by_stream": {"nmbers": 0.1}}, "lr_by_stream names 'nmbers', no stream; did you mean numbers"),
        ({"lr_by_stream": {"text": 0.0}}, "lock the encoder: --locked text"),
        ({"locked": ("text",), "lr_by_stream": {"text": 0.1}}, "text is locked and learns nothing"),
    ],
)
def test_bad_options_say_what_they_want(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe(**changes)


def test_a_lock_that_leaves_nothing_to_train_is_refused() -> None:
    for objective in (shrunk(InfoNCE.Config()), shrunk(BYOL.Config())):
        lone = recipe(
            modality=Points.Config(),
            encoders={"points": Net.Config()},
            objective=objective,
            locked=("points",),
        )
        with pytest.raises(
            ValueError, match=r"locked=points leaves nothing to train of what .* ships: unlock"
        ):
            build(lone, CPU)


def test_a_teacher_of_a_locked_tower_stays_too() -> None:
    parts = build(recipe(objective=shrunk(BYOL.Config()), locked=("text",)), CPU)
    objective = parts.learner.objective
    assert isinstance(objective, BYOL)
    assert objective.teacher is not None
    teacher = objective.teacher.encoders["text"]
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    objective.teacher.update(objective.students(parts.learner.encoders), Progress(step=0, total=9))
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())


# ------------------------------------------------------------------------------------ large batches


@pytest.mark.parametrize("chunk", [1, 7, 24])
def test_chunks_give_the_gradient_of_the_whole_batch_to_two_towers(chunk: int) -> None:
    found = []
    for size in (0, chunk):
        cfg = recipe(encoders={"numbers": Net.Config(), "text": Net.Config()}, chunk=size)
        parts = build(cfg, CPU)
        parts.learner.eval()  # dropout draws by the chunk
        losses = parts.learner(_batch(parts), Progress(step=0, total=1))
        parts.learner.backward(losses)
        found.append((losses.total, {n: p.grad for n, p in parts.learner.named_parameters()}))
    (whole, grads), (again, chunked) = found
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=0)
    for name, grad in grads.items():
        assert grad is not None, name
        assert float((chunked[name] - grad).abs().max()) <= 1e-5 * float(grad.abs().max()), name


def _batch(parts: Parts) -> Batch:
    data = parts.modality.dataset("train")
    views = clean_streams(parts.modality, [data[i] for i in range(24)], [*parts.modality.streams()])
    return Batch(views.values())


def test_chunks_of_an_objective_that_reads_no_tokens_hold_none() -> None:
    parts = build(recipe(), CPU)
    encoders = parts.learner.encoders.eval()
    view = [_batch(parts)[0]]
    (lean,) = Chunked(encoders, 5, [], tokens=False).encode(view)
    (full,) = Chunked(encoders, 5, []).encode(view)
    assert lean.tokens.shape == (24, 0, 8)
    assert full.tokens.shape == (24, 1, 8)
    assert torch.equal(lean.pooled, full.pooled)
