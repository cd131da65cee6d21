"""Weight decay and patch rate follow what a parameter is, whatever its stream or its attribute path is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.abilities import DeclaresParameters
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, build_encoders
from multissl.contract.learning import ParamRule, Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.module import holding
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.treatment import Kind, Treatment, kinds_of, placed, treatment
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.layers.scale import Scale
from multissl.objectives.cav_mae import CAVMAE
from multissl.objectives.mae import MAE
from multissl.objectives.vicreg import VICReg
from multissl.parallel.sharding import Parallel, parallelize
from tests.helpers.ranks import run_ranks

GRID = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16, target_dim=48)
WORDS = StreamSpec(kind="sequence", shape=(8,), num_tokens=8, vocab=20, target_dim=20, target_kind="classes")
VIT = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=1e-5, registers=2)
START = Progress(step=0, total=10)
HOSTILE = (
    "normal", "gamma", "bias", "last_layer", "prototypes", "cls_token", "mask_token", "register_tokens", "pos_embed",
    "patch_embed", "norm", "LayerNorm", "blocks", "tokenizer", "logit_scale", "encoders", "objective", "weight",
)  # fmt: skip
"""Names that users may give their streams and that also occur in paths of parameters."""


def learner_of(kind: str, first: str, second: str) -> Learner:
    """A learner of one or two streams called `first` and `second`."""
    specs = {first: GRID, second: WORDS} if kind == "cav_mae" else {first: GRID}
    decoder = Decoder.Config(dim=16, depth=1, heads=2)
    objective: Any = {
        "vicreg": VICReg.Config(projector=MLPHead.Config(hidden=8, out=8)),
        "mae": MAE.Config(decoder=decoder),
        "cav_mae": CAVMAE.Config(decoder=decoder, heads=2),
    }[kind]
    encoders = build_encoders(dict.fromkeys(specs, VIT), specs)
    return Learner(encoders, objective.build(encoders, specs))


def treatments(learner: Learner) -> list[Treatment]:
    """The treatment of every parameter, in order, without rules."""
    cfg, kinds = AdamW.Config(layer_decay=0.9, patch_lr=0.2), kinds_of(learner)
    return [treatment(kinds[id(p)], layer, depth, cfg) for p, layer, depth in placed(learner)]


def named_kinds(module: nn.Module) -> dict[str, Kind]:
    """What every parameter is, by its name."""
    kinds = kinds_of(module)
    return {name: kinds[id(parameter)] for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("objective", ["vicreg", "mae", "cav_mae"])
def test_a_stream_may_have_any_name(objective: str, name: str) -> None:
    plain = treatments(learner_of(objective, "image", "text"))
    assert treatments(learner_of(objective, name, "text")) == plain
    if objective == "cav_mae":
        assert treatments(learner_of(objective, "image", name)) == plain


@pytest.mark.parametrize("name", ["blocks.0", "a.b", "keys", "encode", "type", ""])
def test_a_name_that_torch_cannot_hold_trains_and_is_restored(name: str) -> None:
    learner, restored = (learner_of("vicreg", name, "") for _ in range(2))
    assert treatments(learner) == treatments(learner_of("vicreg", "image", ""))
    assert [*learner.encoders] == [*learner.objective.plans()] == [name]
    batch = Batch([Views(x=torch.randn(8, 3, 16, 16), stream=name, role="global", num_views=2)])
    optimizer = AdamW.Config().build(learner, learner.objective.param_rules(), 4)
    before = [p.clone() for p in learner.parameters()]
    losses = learner(batch, START)
    learner.backward(losses)
    optimizer.step(START)
    moved = [not torch.equal(p, old) for p, old in zip(learner.parameters(), before, strict=True)]
    assert moved == [p.grad is not None for p in learner.parameters()]
    assert any(moved)
    state = learner.state_dict()
    restored.load_state_dict(state)
    assert restored.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[n]) for n, t in restored.state_dict().items())
    assert torch.equal(restored(batch, START).total, learner(batch, START).total)
    assert not torch.equal(learner(batch, START).total, losses.total)


def test_what_has_no_decay_in_a_masked_autoencoder() -> None:
    kinds = named_kinds(learner_of("mae", "image", ""))
    tokens = {n for n, kind in kinds.items() if kind.token}
    own = ("cls_token", "register_tokens", "mask_token", "pos_embed")
    assert tokens == {f"encoders.image.tokenizer.{t}" for t in own} | {"objective.decoder.mask_token"}
    path = "encoders.image.tokenizer.patch_embed.proj"
    assert {n for n, kind in kinds.items() if kind.patch} == {f"{path}.weight", f"{path}.bias"}
    decayed = {n for n, kind in kinds.items() if not kind.vector and not kind.token}
    assert {n.rpartition(".")[2] for n in decayed} == {"weight"}
    assert not any("norm" in n for n in decayed)
    cfg = AdamW.Config(decay_tokens=True)
    assert treatment(Kind(token=True), 1, 0, cfg).decay == 1


def test_learned_positions_of_a_decoder_are_tokens() -> None:
    decoder = Decoder.Config(dim=16, depth=1, heads=2).build(16, WORDS)
    assert {n for n, kind in named_kinds(decoder).items() if kind.token} == {"mask_token", "pos_embed"}


def test_every_kind_of_norm_is_known_and_a_name_makes_none() -> None:
    timm = pytest.importorskip("timm")
    norms = {
        "a": nn.LayerNorm([4, 4]), "b": nn.RMSNorm([2, 3]), "c": nn.GroupNorm(1, 4), "d": nn.BatchNorm2d(4),
        "e": nn.InstanceNorm1d(4, affine=True), "f": nn.SyncBatchNorm(4), "g": timm.layers.LayerNorm2d(4),
        "h": Scale(0.1),
    }  # fmt: skip
    assert all(kind.vector for kind in kinds_of(nn.ModuleDict(norms)).values())
    plain = {"norm": nn.Linear(4, 4), "gamma": nn.Conv2d(4, 4, 3), "pos_embed": nn.Embedding(4, 4)}
    kinds = named_kinds(nn.ModuleDict(plain))
    assert {n for n, kind in kinds.items() if kind == Kind()} == {f"{n}.weight" for n in plain}
    assert kinds["norm.bias"] == Kind(vector=True)


def test_a_matrix_called_bias_is_one_unless_its_name_is_a_key() -> None:
    matrix = nn.Parameter(torch.zeros(3, 3))
    owner = nn.Module()
    owner.bias = matrix
    assert named_kinds(owner)["bias"].vector
    assert not named_kinds(nn.ParameterDict({"bias": matrix}))["bias"].vector


class Own(nn.Module):
    """A network whose attributes are called as norms and patches are."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = nn.Linear(3, 4)
        self.patch_embed = nn.Linear(4, 4, bias=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4))
        self.last = nn.LayerNorm([1, 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.patch_embed(self.normal(x.mean((2, 3)))) + self.pos_embed)


def test_an_own_network_is_judged_by_its_modules() -> None:
    kinds = named_kinds(holding(Own()).build(GRID))
    assert kinds["net.normal.weight"] == kinds["net.patch_embed.weight"] == Kind()
    assert kinds["net.last.weight"] == kinds["net.normal.bias"] == Kind(vector=True)
    assert kinds["net.pos_embed"] == Kind(token=True)


class Declaring(DeclaresParameters, Own):
    """The same with a word on two of its matrices."""

    def undecayed_parameters(self) -> list[Tensor]:
        return [self.normal.weight]

    def patch_parameters(self) -> list[Tensor]:
        return [self.patch_embed.weight]


def test_an_own_network_may_declare_more() -> None:
    kinds = named_kinds(holding(Declaring()).build(GRID))
    assert kinds["net.normal.weight"] == Kind(vector=True)
    assert kinds["net.patch_embed.weight"] == Kind(patch=True)


def timm_encoder(name: str, **options: Any) -> Encoder:
    pytest.importorskip("timm")
    spec = StreamSpec(kind="grid", shape=(3, 32, 32), patch=(16, 16), num_tokens=4)
    return TimmEncoder.Config(name=name, options=options).build(spec)


def test_names_inside_published_networks_are_their_contract() -> None:
    kinds = named_kinds(timm_encoder("vit_tiny_patch16_224", embed_dim=12, depth=1, num_heads=2))
    assert {n for n, kind in kinds.items() if kind.token} == {"net.cls_token", "net.pos_embed", "mask_token"}
    assert {n for n, kind in kinds.items() if kind.patch} == {
        f"net.patch_embed.proj.{n}" for n in ("weight", "bias")
    }
    affine = named_kinds(timm_encoder("resmlp_12_224"))  # norms of shape [1, 1, D]
    assert affine["net.norm.alpha"].vector
    assert not affine["net.blocks.0.mlp_channels.fc1.weight"].vector


def test_hugging_face_networks_keep_their_tokens() -> None:
    pytest.importorskip("transformers")
    from multissl.encoders.huggingface import HuggingFaceEncoder

    small = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    made = HuggingFaceEncoder.Config(config={"model_type": "dinov2_with_registers", **small}).build(GRID)
    kinds = named_kinds(made)
    tokens = ("cls_token", "mask_token", "register_tokens")
    assert {n for n, kind in kinds.items() if kind.token} == {
        "mask_token",
        *(f"net.embeddings.{t}" for t in tokens),
    }
    assert all(kind.vector for n, kind in kinds.items() if "norm" in n or "layer_scale" in n)


def sharded_kinds(_rank: int) -> tuple[dict[str, Kind], dict[str, Kind]]:
    learner = learner_of("mae", "image", "")
    before = named_kinds(learner)
    parallelize(learner, Parallel(shard=2), torch.device("cpu"))
    return before, named_kinds(learner)


@pytest.mark.ranks
def test_sharded_parameters_are_what_they_were() -> None:
    for before, after in run_ranks(2, sharded_kinds):
        assert after == before


def test_factors_of_several_rules_multiply_and_the_longest_rest_counts() -> None:
    linear = nn.Linear(2, 2)
    rules = [
        ParamRule(of=linear, lr=0.5, decay=0.25, frozen_steps=3),
        ParamRule(of=linear, lr=0.5, decay=0.5),
    ]
    found = treatment(Kind(), 1, 0, AdamW.Config(), rules)
    assert (found.lr, found.decay, found.frozen_steps, found.constant) == (0.25, 0.125, 3, False)
