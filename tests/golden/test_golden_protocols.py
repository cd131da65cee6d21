"""Golden family `protocols`: published evaluation protocols, as far as evaluators and probes go."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.evaluators import few_shot, ranking, robustness, spectra
from multissl.evaluators.dense import areas, attention, depth, propagation
from multissl.evaluators.dense.heads import LinearSegmentationHead
from multissl.evaluators.probes import inputs
from multissl.evaluators.zero_shot import ensemble
from multissl.layers.attentive import (
    CrossAttentionClassifier,
    MeanAttentiveClassifier,
    PlainAttentiveClassifier,
)
from multissl.schedules import HeldCosine, Schedule
from tests.golden import Case, cases, close

pytestmark = pytest.mark.reference


def check_number(case: Case, value: float, name: str) -> None:
    """Compare a number with a stored one, in the precision that it is stored in."""
    case.check(torch.tensor(value, dtype=torch.float64), "out", name)


@pytest.mark.parametrize("case", cases("protocols", "lidar"))
def test_golden_lidar(case: Case) -> None:
    views = case.tensors("in")["e"]
    values = spectra.discriminant_values(views, case.hyper["delta"])
    case.check(values, "out", "eigvals")
    check_number(case, spectra.lidar(views, case.hyper["delta"]), "lidar_paper")
    check_number(case, spectra.lidar(views), "lidar_spt")


@pytest.mark.parametrize("case", cases("protocols", "alpha_req_wls"))
def test_golden_alpha_req_wls(case: Case) -> None:
    shares = spectra.variance_shares(case.tensors("in")["features"])
    case.check(shares, "out", "eig_ratio")
    line = spectra.fit_power_law(shares, case.hyper["start"] + 1, case.hyper["stop"])
    check_number(case, line.alpha, "alpha")
    check_number(case, line.r2, "r2")
    check_number(case, spectra.entropy_rank(shares), "rankme_reptrix")


@pytest.mark.parametrize("case", cases("protocols", "clid"))
def test_golden_clid(case: Case) -> None:
    given = case.tensors("in")
    z, clusters = given["z"], given["assign"]
    assert len(clusters.unique()) <= case.hyper["K"]
    plain = float(spectra.learnability(z, clusters).double().mean())
    dimension = spectra.intrinsic_dimension(z)
    check_number(case, plain, "cl_prequential")
    check_number(case, float(spectra.learnability(z, clusters, cosine=True).double().mean()), "cl_cosine")
    check_number(case, dimension, "id_twonn")
    check_number(case, spectra.intrinsic_dimension(z, discard=0.1), "id_twonn_fit")
    check_number(case, plain + dimension, "clid")


@pytest.mark.parametrize("case", cases("protocols", "dinov2_knn_few"))
def test_golden_dinov2_knn_few(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    bank, queries = given["train"], given["test"]  # unit features
    for draw in range(h["tries"]):
        rows = few_shot.draw_per_class(given["train_labels"], h["npc"], draw)
        case.check(rows, "out", f"indices_{draw}")
        counts = few_shot.neighbor_counts(h["ks"], h["npc"])
        votes = few_shot.shares(bank[rows], given["train_labels"][rows], queries, counts, h["T"], h["C"])
        assert {f"probs_{draw}_k{k}" for k in votes} == {
            n for n in case.tensors("out") if n.startswith(f"probs_{draw}_")
        }
        for k, each in votes.items():
            case.check(each, "out", f"probs_{draw}_k{k}")
            case.check(each.argmax(1), "out", f"pred_{draw}_k{k}")


@pytest.mark.parametrize("case", cases("protocols", "dinov3_knn_skip_first"))
def test_golden_dinov3_knn_skip_first(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    x = given["x"]  # unit features
    votes = few_shot.shares(x, given["labels"], x, h["ks"], h["T"], h["C"], skip=1)
    for k, each in votes.items():
        case.check(each, "out", f"probs_k{k}")


@pytest.mark.parametrize("case", cases("protocols", "few_shot_subset"))
def test_golden_few_shot_subset(case: Case) -> None:
    labels, h = case.tensors("in")["labels"], case.hyper
    count = h["frac"] if h["k"] is None else h["k"]
    for draw in range(h["tries"]):
        keep = torch.zeros(len(labels), dtype=torch.bool)
        keep[few_shot.draw_per_class(labels, count, draw)] = True
        case.check(keep, "out", f"keep_{draw}")
    assert len(labels.unique()) <= h["C"]


@pytest.mark.parametrize("case", cases("protocols", "linear_probe_input"))
def test_golden_linear_probe_input(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    blocks = list(zip(given["patch"], given["cls"], strict=True))
    for last in (1, h["n"]):
        for average in (False, True):
            case.check(inputs.linear_input(blocks, last, average), "out", f"n{last}_avg{int(average)}")
    rates = [inputs.scale_rate(rate, h["batch"] * h["world"]) for rate in inputs.LEARNING_RATES]
    case.check(torch.tensor(rates, dtype=torch.float64), "out", "lr_scaled")
    case.check(torch.tensor(inputs.INVERSE_PENALTIES, dtype=torch.float64), "out", "logreg_C")


@pytest.mark.parametrize("case", cases("protocols", "attention_mask_jaccard"))
def test_golden_attention_mask_jaccard(case: Case) -> None:
    given = case.tensors("in")
    assert case.hyper["h"] * case.hyper["w"] == given["att"].shape[1]
    masks = attention.keep_mass(given["att"], case.hyper["threshold"])
    case.check(masks, "out", "mask")
    scores = attention.jaccard(masks, given["gt"])
    case.check(scores, "out", "jaccard")
    case.check(scores.argmax(), "out", "best_head")


@pytest.mark.parametrize("case", cases("protocols", "label_propagation"))
def test_golden_label_propagation(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    soft = propagation.propagate(
        given["feats"], given["first_seg"][0], frames=h["n_last"], radius=h["radius"], neighbors=h["topk"]
    )
    masks = list(soft)
    assert len(masks) == h["T"] - 1
    for frame, mask in enumerate(masks, start=1):
        case.check(mask, "out", f"soft_{frame}")
        case.check(propagation.sharpen(mask, h["patch"]), "out", f"seg_{frame}")


EXTRA = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}


@pytest.mark.parametrize("case", cases("protocols", "imagenet_c_mce"))
def test_golden_imagenet_c_mce(case: Case) -> None:
    given = case.tensors("in")
    names = [name.lower() for name in json.loads(bytes(given["names_json"].tolist()))]
    accuracy = dict(zip(names, given["acc"].tolist(), strict=True))
    errors = dict(zip(names, given["ref_err"].tolist(), strict=True))
    assert case.hyper["lo"] <= given["acc"].min() <= given["acc"].max() <= case.hyper["hi"]
    assert {*names} == {*robustness.STANDARD} | EXTRA
    standard = {name: accuracy[name] for name in robustness.STANDARD}
    partial = {name: accuracy[name][:3] for name in names[:5]}
    for name, measured in (("mce_19", accuracy), ("mce_15", standard), ("mce_partial", partial)):
        check_number(case, robustness.mean_corruption_error(measured, errors), name)


def undefined_as_minus_one(values: Tensor) -> Tensor:
    return values.nan_to_num(-1.0)


@pytest.mark.parametrize("case", cases("protocols", "retrieval_revisited"))
def test_golden_retrieval_revisited(case: Case) -> None:
    given = case.tensors("in")
    similarity = given["query"] @ given["gallery"].T
    for level, letter in (("medium", "M"), ("hard", "H")):
        ranked = ranking.revisited(similarity, given["role_1easy_2hard_3junk"], level)
        case.check(undefined_as_minus_one(ranked.precision), "out", f"aps{letter}")
        mean = ranked.precision.nanmean().float().double()  # as the reference rounds it
        case.check(undefined_as_minus_one(mean), "out", f"map{letter}")
        case.check(undefined_as_minus_one(ranked.early.nanmean(0)), "out", f"mpr{letter}")


@pytest.mark.parametrize("case", cases("protocols", "copy_detection"))
def test_golden_copy_detection(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    tokens, others = given["tokens"], given["whitening_set"]
    assert (len(others), tokens.shape[1] - 1) == (h["Nw"], h["h"] * h["w"])
    descriptor = ranking.copy_descriptor(tokens[:, 0], tokens[:, 1:])
    case.check(descriptor, "out", "descriptor")
    projection = ranking.whitening(others)
    case.check(projection.abs(), "out", "abs_projection")
    unit = ranking.whitened(descriptor, projection, others.mean(0))
    case.check(unit @ unit.T, "out", "similarity")
    examples = [([0], 1), ([3], 1), ([0, 2, 5], 3), ([], 1)]
    values = [ranking.trapezoid_precision(torch.tensor(ranks, dtype=torch.int64), n) for ranks, n in examples]
    expected = case.tensors("out")["ap_examples"]
    close(torch.tensor(values, dtype=torch.float64), expected[:4], case.rtol or 0.0, "average precision")


@pytest.mark.parametrize("case", cases("protocols", "depth_bins"))
def test_golden_depth_bins(case: Case) -> None:
    given, h = case.tensors("in"), case.hyper
    values: dict[str, Tensor] = {}
    for kind in ("linear", "softmax", "sigmoid"):
        values[kind] = depth.expected_depth(given["logit"], h["mn"], h["mx"], kind)
        case.check(values[kind], "out", f"depth_{kind}")
    predicted = values["linear"].detach().requires_grad_()
    loss = depth.scale_invariant_loss(predicted, given["gt"])
    loss.backward()
    case.check(loss, "out", "sigloss")
    case.check(predicted.grad, "grad", "depth_linear_from_sigloss")
    case.check(depth.scale_invariant_loss(predicted, given["gt"], warm_up=True), "out", "sigloss_warm")
    case.check(depth.gradient_loss(predicted, given["gt"]), "out", "gradlog")
    known = given["gt"] > 0
    for name, score in depth.pixel_scores(predicted[known], given["gt"][known]).items():
        case.check(score, "out", f"m_{name}")


@pytest.mark.parametrize("case", cases("protocols", "segmentation_miou"))
def test_golden_segmentation_miou(case: Case) -> None:
    given = case.tensors("in")
    labels = areas.without_zero(given["label"]) if case.hyper["reduce_zero"] else given["label"]
    counted = areas.Areas.of(given["pred"], labels, case.hyper["C"])
    case.check(undefined_as_minus_one(counted.iou()), "out", "iou")
    case.check(counted.mean_iou(), "out", "miou")
    case.check(counted.accuracy(), "out", "aacc")


def loaded(module: nn.Module, case: Case) -> nn.Module:
    """Return a module in evaluation mode and the precision of a case, with its weights under their own names."""
    states = case.tensors("param")
    module = module.to(next(iter(states.values())).dtype).eval()
    names = module.load_state_dict(states, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in names.missing_keys)
    assert all(".xattn.proj." in name for name in names.unexpected_keys)  # which V-JEPA's code never uses
    return module


@pytest.mark.parametrize("case", cases("protocols", "dinov3_linear_seg_head"))
def test_golden_dinov3_linear_seg_head(case: Case) -> None:
    x = case.tensors("in")["x"]
    head = LinearSegmentationHead(x.shape[1], case.hyper["C"])
    assert isinstance(loaded(head, case), LinearSegmentationHead)
    case.check(head.predict(x, tuple(case.hyper["size"])), "out", "logits")


@pytest.mark.parametrize("case", cases("protocols", "attentive_probe"))
def test_golden_attentive_probe(case: Case) -> None:
    h, x = case.hyper, case.tensors("in")["x"].requires_grad_()
    order: Any = {"vjepa": "query", "vjepa2": "tokens"}[h["which"]]
    probe = CrossAttentionClassifier(h["D"], h["C"], heads=h["heads"], depth=h["depth"], order=order)
    logits = loaded(probe, case)(x)
    case.check(logits, "out", "logits")
    logits.square().sum().backward()
    case.check(x.grad, "grad", "x_of_sum_sq")


@pytest.mark.parametrize("case", cases("protocols", "attentive_probe_capi"))
def test_golden_attentive_probe_capi(case: Case) -> None:
    h = case.hyper
    probe = loaded(PlainAttentiveClassifier(h["D"], h["C"]), case)
    case.check(probe(case.tensors("in")["x"]), "out", "logits")


@pytest.mark.parametrize("case", cases("protocols", "attentive_probe_aim"))
def test_golden_attentive_probe_aim(case: Case) -> None:
    h = case.hyper
    probe = loaded(MeanAttentiveClassifier(h["D"], h["C"], heads=h["heads"], queries=h["nq"]), case)
    case.check(probe(case.tensors("in")["x"]), "out", "logits")


@pytest.mark.parametrize("case", cases("protocols", "clip_zero_shot"))
def test_golden_clip_zero_shot(case: Case) -> None:
    given = case.tensors("in")
    classes = ensemble(given["text"])
    case.check(classes.T, "out", "classifier")
    logits = 100 * F.normalize(given["image"], dim=1) @ classes.T
    case.check(logits, "out", "logits")
    case.check(logits.argmax(1), "out", "pred")


@pytest.mark.parametrize("case", cases("protocols", "dinov3_schedules"))
def test_golden_dinov3_schedules(case: Case) -> None:
    h, total = case.hyper, int(case.tensors("in")["total"])
    ends: dict[str, Any] = {"base": h["peak"], "final": h["end"], "start": h["start"], "warmup": h["warm"]}
    schedules = {
        "full": HeldCosine(**ends),
        "with_constant": HeldCosine(**ends, cosine=h["cosine"]),
        "trunc": Schedule(**ends, cut=h["trunc"]),
        "plain": Schedule(**ends, freeze=2),  # which no hyperparameter of the case says
    }
    for name, schedule in schedules.items():
        values = [schedule.at(step, total) for step in range(total)]
        case.check(torch.tensor(values, dtype=torch.float64), "out", name)
