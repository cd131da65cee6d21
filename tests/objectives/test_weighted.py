# long file: sums of objectives share their terms and views

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.config import from_dict, to_dict
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, build_encoders
from multissl.contract.learning import Features, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, StreamSpec, ViewPlan
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim.sgd import SGD
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.objectives.dino import DINO
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.msn import MSN
from multissl.objectives.shared import Remembered, merge
from multissl.objectives.swav import SwAV
from multissl.objectives.vicreg import VICReg
from multissl.objectives.weighted import Weighted
from multissl.parallel.ranks import rank, world
from multissl.parallel.sharding import Parallel, full, parallelize
from tests.helpers.ranks import run_ranks
from tests.objectives.test_dino import SPEC, Stub, batch_of

START = Progress(step=0, total=10)
HEAD = MLPHead.Config(hidden=8, out=5, layers=2)
SCORES = PrototypeHead.Config(prototypes=12, bottleneck=5, hidden=8)
PLAIN: dict[str, Any] = {"ibot_weight": 0.0, "koleo_weight": 0.0, "head": SCORES}
MASKED: dict[str, Any] = {"dino_weight": 0.0, "koleo_weight": 0.0, "ibot_head": SCORES}


def three() -> dict[str, Objective.Config]:
    """Terms that all look at the same two views; one of them at local views too."""
    return {
        "near": InfoNCE.Config(projector=HEAD),
        "spread": VICReg.Config(projector=HEAD),
        "sorted": DINO.Config(**PLAIN, num_local=2),
    }


def build(terms: Mapping[str, Objective.Config], **options: Any) -> tuple[Encoders, Any]:
    torch.manual_seed(1)
    encoders = Encoders({"rows": Stub()}).double()
    objective = Weighted(Weighted.Config(terms=dict(terms), **options), encoders, SPEC).double()
    return encoders, objective.train()


class Counting(EncodeFunction):
    """Notes every encode that reaches the encoders: rows, treatment of masks."""

    def __init__(self, encoders: Encoders) -> None:
        self.encoders = encoders
        self.seen: list[tuple[Masking, list[int]]] = []

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        self.seen.append((masking, [len(v.x) for v in views]))
        return self.encoders.encode(views, masking, inner)


# ------------------------------------------------------------------------------------------- encodes


def test_three_terms_on_the_same_views_encode_them_once() -> None:
    encoders, objective = build(three())
    counting = Counting(encoders)
    losses = objective(counting, batch_of(4, 2, masked=False), START)
    assert counting.seen == [("none", [8, 8])]
    losses.total.backward()
    assert all(p.grad is not None for n, p in encoders.named_parameters() if "mask_token" not in n)


def test_a_masked_and_a_whole_pass_are_two_encodes_and_ibot_is_dino_beside_a_masked_term() -> None:
    both: dict[str, Any] = {**PLAIN, "ibot_weight": 1.0, "ibot_head": SCORES}
    terms = {"views": DINO.Config(**PLAIN, num_local=0), "tokens": DINO.Config(**MASKED, num_local=0)}
    encoders, objective = build(terms)
    batch, counting = batch_of(4, 0), Counting(encoders)
    losses = objective(counting, batch, START)
    assert counting.seen == [("none", [8]), ("replace", [8])]
    whole: Any = DINO(DINO.Config(**both, num_local=0), encoders, SPEC).double().train()
    whole.ibot_head.load_state_dict(objective.terms["tokens"].ibot_head.state_dict())
    whole.teacher["ibot_head"].load_state_dict(whole.ibot_head.state_dict())
    right = whole(encoders, batch, START).terms["ibot"]
    torch.testing.assert_close(losses.terms["tokens/ibot"], right)


def test_a_part_of_an_item_is_found_in_it_and_what_a_call_lacks_goes_through_together() -> None:
    (encoders, _), (full, local) = build(three()), batch_of(4, 2)
    counting = Counting(encoders)
    shared = Remembered(counting)
    (whole,) = shared.encode([full])
    (second,) = shared.encode([full.part(1, 1)])
    assert torch.equal(second.pooled, whole.pooled[4:])
    assert torch.equal(second.tokens, whole.tokens[4:])
    shared.encode([full.with_mask(None), local, local.part(0, 1)])
    assert counting.seen == [("none", [8]), ("none", [8, 4])]
    shared.encode([full], "replace")
    shared.encode([full.part(0, 1)], "replace")
    assert counting.seen[2:] == [("replace", [8])]
    shared.encode([full.with_mask(None)], "replace")
    with torch.no_grad():
        assert not shared.encode([full])[0].pooled.requires_grad
    shared.encode([full.samples(torch.arange(4))])  # a copy: its rows are not known
    assert counting.seen[3:] == [("replace", [8]), ("none", [8]), ("none", [8])]


def test_less_than_was_remembered_serves_and_more_does_not() -> None:
    (encoders, _), (full, _) = build(three()), batch_of(4, 2)
    counting = Counting(encoders)
    shared = Remembered(counting)
    shared.encode([full.part(1, 1)])
    shared.encode([full])
    shared.encode([full.part(0, 1)])
    assert counting.seen == [("none", [4]), ("none", [8])]


# ------------------------------------------------------------------------------------ sums, gradients


def test_total_and_gradients_are_the_weighted_sums_of_the_terms_alone() -> None:
    weights = {"near": 2.0, "sorted": 0.5}
    encoders, objective = build(three(), weights=weights)
    batch = batch_of(4, 2)
    losses = objective(encoders, batch, START)
    right = torch.zeros((), dtype=torch.float64)
    for name, term in objective.terms.items():
        mine = term(encoders, batch if name == "sorted" else Batch([batch[0].with_mask(None)]), START)
        right = right + weights.get(name, 1.0) * mine.total
        for n, value in mine.terms.items():
            torch.testing.assert_close(losses.terms[f"{name}/{n}"], value)
        for n, value in mine.stats.items():
            torch.testing.assert_close(losses.stats[f"{name}/{n}"], value)
    torch.testing.assert_close(losses.total, right)
    trained = [p for p in [*encoders.parameters(), *objective.parameters()] if p.requires_grad]
    grads = [torch.autograd.grad(x, trained, allow_unused=True) for x in (losses.total, right)]
    torch.testing.assert_close(grads[0], grads[1])


def test_micro_batches_give_the_gradients_of_the_whole_batch() -> None:
    found = []
    for chunk in (0, 3):
        encoders, objective = build(three())
        learner = Learner(encoders, objective, chunk)
        learner.backward(learner(batch_of(4, 2), START))
        found.append([p.grad for p in learner.parameters()])
    torch.testing.assert_close(found[0], found[1])


def stepped(_: int) -> list[Tensor]:
    encoders, objective = build(three())
    found: list[Tensor] = []
    mine = torch.arange(rank() * 4 // world(), (rank() + 1) * 4 // world())
    for _step in range(2):
        losses = objective(encoders, Batch(v.samples(mine) for v in batch_of(4, 2, masked=False)), START)
        trained = [p for n, p in [*encoders.named_parameters(), *objective.named_parameters()]
                   if p.requires_grad and "mask_token" not in n]  # fmt: skip
        found += [g / world() for g in torch.autograd.grad(losses.total, trained)]
        objective.after_step(encoders, START)
    return found


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one() -> None:
    (one, two), right = run_ranks(2, stepped), stepped(0)
    for a, b, value in zip(one, two, right, strict=True):
        torch.testing.assert_close(a + b, value)


def sharded(rank: int, shard: int) -> list[Tensor]:
    """Losses of three steps and the weights after them, of terms with prototypes, a queue and a teacher."""
    torch.manual_seed(0)
    encoders = build_encoders({"rows": TransformerEncoder.Config(dim=16, depth=2, heads=2)}, SPEC)
    encoders["rows"].prepare_for(frozenset({"none"}))
    heads: dict[str, Any] = {"projector": HEAD, "prototypes": 7, "num_local": 0}
    terms = {"swap": SwAV.Config(**heads, queue=8), "drop": MSN.Config(**heads, mask_ratio=0.0)}
    objective = Weighted(Weighted.Config(terms=terms), encoders, SPEC)
    learner = Learner(encoders, objective).train()
    if shard:
        parallelize(learner, Parallel(shard=shard, precision="fp32"), torch.device("cpu"))
    # no Adam: it makes steps of rounding where a gradient is 0 (the bias of keys)
    optimizer = SGD(SGD.Config(lr=0.1, final_lr=0.1), learner, objective.param_rules(), 8)
    found: list[Tensor] = []
    for step in range(3):
        progress = Progress(step=step, total=10)
        mine = torch.arange(rank * 8 // world(), (rank + 1) * 8 // world())
        batch = Batch(v.samples(mine) for v in batch_of(8, 0, masked=False))
        for views in batch:
            views.x = views.x.float()
        losses = learner(batch, progress)
        learner.backward(losses)
        optimizer.step(progress)
        optimizer.zero_grad()
        objective.after_step(learner.encoders, progress)
        found.append(losses.total.detach() / world())
    return [*found, *(full(p).detach() for p in learner.parameters())]


@pytest.mark.ranks
def test_a_sharded_sum_gives_the_losses_and_weights_of_one_rank() -> None:
    (one, two), (right,) = (
        run_ranks(2, sharded, 2),
        run_ranks(1, sharded, 0),
    )  # all on one thread: fp32 rounds alike
    for a, b, value in zip(one[:3], two[:3], right[:3], strict=True):
        torch.testing.assert_close(a + b, value, atol=1e-5, rtol=1e-5)
    for found, value in zip(one[3:], right[3:], strict=True):
        torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4)


def test_terms_read_the_streams_named_for_them_as_in_slip() -> None:
    specs = {"one": SPEC["rows"], "two": SPEC["rows"]}
    encoders = Encoders({s: Stub() for s in specs}).double()
    terms = {"pairs": InfoNCE.Config(projector=HEAD), "views": DINO.Config(**PLAIN, num_local=0)}
    cfg = Weighted.Config(terms=terms, streams={"views": ("one",)})
    objective: Any = cfg.build(encoders, specs).double().train()
    plans = objective.plans()
    assert (plans["one"].num_clean, plans["one"].num_global) == (1, 2)
    assert (plans["two"].num_clean, plans["two"].num_global) == (1, 0)
    clean = [Views(x=torch.randn(4, 6).double(), stream=s, role="clean") for s in specs]
    full = Views(x=torch.randn(8, 6).double(), stream="one", role="global", num_views=2)
    counting = Counting(encoders)
    losses = objective(counting, Batch([clean[0], full, clean[1]]), START)
    losses.total.backward()
    assert sorted(counting.seen) == [("none", [4, 4]), ("none", [8])]
    objective.after_step(encoders, START)
    shipped: Any = objective.exported(encoders)  # the first term's towers
    assert [tower.encoder for tower in shipped.values()] == [*encoders.values()]
    objective.cfg.export = "views"
    shipped = objective.exported(encoders)
    assert shipped["one"] is objective.terms["views"].teacher["encoders"]["one"]
    assert shipped["two"] is encoders["two"]


# --------------------------------------------------------------------------- slow state, rules, export


def test_every_term_moves_its_state_and_the_first_teacher_is_shipped_unless_another_term_is_named() -> None:
    encoders, objective = build(three())
    assert objective.exported(encoders)["rows"] is objective.terms["sorted"].teacher["encoders"]["rows"]
    assert build(three(), export="near")[1].exported(encoders) is encoders
    before = objective.terms["sorted"].teacher["encoders"]["rows"].out.weight.clone()
    with torch.no_grad():
        for p in encoders.parameters():
            p.add_(1)
    objective.after_step(encoders, START)
    assert not torch.equal(objective.terms["sorted"].teacher["encoders"]["rows"].out.weight, before)


def test_rules_hold_for_the_parameters_of_their_own_term_and_for_encoders() -> None:
    class Ruled(VICReg):
        def __init__(self, cfg: VICReg.Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
            super().__init__(cfg, encoders, streams)
            self.encoder_rule = ParamRule(of=encoders.get_submodule("rows.out"), decay=0.0)

        def param_rules(self) -> list[ParamRule]:
            return [ParamRule(of=self.projectors["rows"].mlp[0].weight, lr=3.0), self.encoder_rule]

    terms = {"plain": VICReg.Config(projector=HEAD), "ruled": Ruled.Config(projector=HEAD)}
    encoders, objective = build(terms)
    names = {id(p): name for name, p in Learner(encoders, objective).named_parameters()}
    rules = {names[id(p)]: (r.lr, r.decay) for r in objective.param_rules() for p in r.parameters()}
    assert rules == {
        "objective.terms.ruled.projectors.rows.mlp.0.weight": (3.0, 1.0),
        "encoders.rows.out.weight": (1.0, 0.0),
        "encoders.rows.out.bias": (1.0, 0.0),
    }


def test_an_alarm_reads_the_figures_of_its_term_and_names_the_option_as_it_is_typed() -> None:
    class Alarmed(VICReg):
        def alarm(self, history: Sequence[Mapping[str, float]], progress: Progress) -> str | None:
            return f"std {history[-1]['stats/std']}, loss {history[-1]['loss']}: raise objective.variance"

    _, objective = build({"quiet": InfoNCE.Config(projector=HEAD), "loud": Alarmed.Config(projector=HEAD)})
    entry = {"step": 5, "loss": 9.0, "stats/loud/std": 0.5, "stats/quiet/std": 0.9, "stats/loud/total": 4.0}
    said = objective.alarm([entry], START)
    assert said == "loud: std 0.5, loss 4.0: raise objective.terms.loud.variance"


def test_a_state_dict_round_trip_is_the_whole_truth() -> None:
    (encoders, objective), (_, other) = build(three()), build(three())
    objective(encoders, batch_of(4, 2), START)
    objective.after_step(encoders, START)
    other.load_state_dict(objective.state_dict())
    again = [o(encoders, batch_of(4, 2), START).total for o in (objective, other)]
    assert torch.equal(*again)


# ------------------------------------------------------------------------------------ plans, bad input


def test_plans_are_merged_by_stream_and_each_term_is_handed_its_own_part() -> None:
    merged = merge(
        {
            "a": {"x": ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), target=True, size=(9,))},
            "b": {"x": ViewPlan(num_global=2, num_local=3, inner=2, size=(9,)), "y": ViewPlan(num_clean=1)},
        }
    )
    assert merged["y"] == ViewPlan(num_clean=1)
    assert merged["x"] == ViewPlan(
        num_global=2, num_local=3, inner=2, mask_ratio=(0.5, 0.5), target=True, size=(9,)
    )

    seen: dict[str, Batch] = {}

    class One(VICReg):
        def plans(self) -> Any:
            return {"rows": ViewPlan(num_global=1, mask_ratio=(0.1, 0.5))}

        def forward(self, encoders: Any, batch: Batch, progress: Progress) -> Any:
            seen["one"] = batch
            return super().forward(encoders, Batch([*batch, *batch]), progress)

    encoders, objective = build({"one": One.Config(projector=HEAD), "near": InfoNCE.Config(projector=HEAD)})
    full, local = batch_of(4, 2)
    objective(encoders, Batch([full, local]), START)
    (mine,) = seen["one"]
    assert (mine.num_views, mine.role) == (1, "global")
    assert torch.equal(mine.x, full.x[:4])
    assert mine.mask is not None
    assert full.mask is not None
    assert torch.equal(mine.mask.hidden, full.mask.hidden[:4])
    kept = mine.mask.index[mine.mask.weight > 0]
    assert torch.equal(kept, mine.mask.hidden.flatten().nonzero().flatten())
    assert len(mine.mask.index) == len(full.mask.index)


def test_the_second_view_of_a_mask_keeps_its_index() -> None:
    full = batch_of(4, 0)[0].part(1, 1)
    assert full.mask is not None
    kept = full.mask.index[full.mask.weight > 0]
    assert torch.equal(kept, full.mask.hidden.flatten().nonzero().flatten())
    rows = torch.where(full.mask.weight > 0, full.mask.hidden.sum(1)[full.mask.index // 6], 1)
    torch.testing.assert_close(full.mask.weight[full.mask.weight > 0], 1 / rows[full.mask.weight > 0].float())


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (
            {"a": ViewPlan(num_global=1, mask_ratio=(0.5, 0.5)), "b": ViewPlan(num_global=2, mask_ratio=(0.1, 0.5))},
            r"a and b ask for different masks of x \(mask_ratio \(0.5, 0.5\) and \(0.1, 0.5\)\)",
        ),
        (
            {"a": ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), corrupt=True), "b": ViewPlan(num_global=2)},
            "a corrupts the global views of x, which b reads whole",
        ),
        (
            {"a": ViewPlan(num_global=1, size=(32, 32)), "b": ViewPlan(num_global=2)},
            r"views of x of different sizes \(a \(32, 32\), b its own\): give all the same",
        ),
    ],
)  # fmt: skip
def test_two_settings_of_the_views_of_a_stream_are_refused_with_both_names(
    plans: dict[str, ViewPlan], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        merge({name: {"x": plan} for name, plan in plans.items()})


def test_two_objectives_with_masks_of_their_own_are_refused_when_built() -> None:
    terms = {"tokens": DINO.Config(**MASKED), "drop": MSN.Config(projector=HEAD, prototypes=7)}
    with pytest.raises(ValueError, match="tokens and drop ask for different masks of rows"):
        build(terms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {}}, "objective.terms is empty"),
        ({"weights": {"infonse": 1.0}}, "objective.weights names 'infonse', no term; did you mean infonce"),
        ({"weights": {"vicreg": 0.0}}, r"objective.weights.vicreg=0.0: want more than 0, or leave"),
        ({"streams": {"clip": ("a",)}}, "objective.streams names 'clip', no term"),
        ({"export": "dino"}, "objective.export names 'dino', no term"),
        ({"terms": {"a/b": VICReg.Config()}}, r"objective.terms.a/b: want a name without"),
        ({"terms": {"a": Objective.Config()}}, "objective.terms.a names no objective: give it a kind"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted.Config(**options)


def test_a_stream_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective.streams.near names 'row'; did you mean rows"):
        build(three(), streams={"near": ("row",)})


def test_the_config_comes_back_from_json_with_every_term() -> None:
    cfg = Weighted.Config(terms=three(), weights={"near": 2.0}, streams={"near": ("rows",)}, export="sorted")
    data = to_dict(cfg)
    assert data["terms"]["sorted"]["kind"] == "dino"
    assert from_dict(Objective.Config, data) == cfg
    data["terms"]["spread"]["varianse"] = 1
    with pytest.raises(ValueError, match=r"terms.spread has no option 'varianse'; did you mean variance"):
        from_dict(Objective.Config, data)
    assert cfg.maskings() == {"none", "replace"}
