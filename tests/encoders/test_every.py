"""Every registered encoder, small, on pictures: shapes, gradients, state, and two steps of training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from multissl import registry
from multissl.config import from_dict, to_dict
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.evaluator import depths_of
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import MLPHead
from multissl.objectives.vicreg import VICReg
from multissl.trust import TYPED

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {"dim": 12, "depth": 2, "heads": 2},
    "mlp": {"dims": (12, 12)},
    "resnet": {"depth": 10, "width": 2, "stem": "small"},
    "timm": {"options": {"embed_dim": 12, "depth": 2, "num_heads": 2, "patch_size": 4}},
    "huggingface": {
        "config": {"model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "intermediate_size": 24, "patch_size": 4},
    },
    "nature": {"dim": 16, "channels": (8, 8), "kernels": (3, 3), "strides": (2, 2)},
    "module": {"factory": "tests.encoders.nets:make"},
}  # fmt: skip
TOKENS = {"transformer": 16, "mlp": 1, "resnet": 4, "timm": 16, "huggingface": 16, "module": 64, "nature": 9}


def config(name: str) -> Encoder.Config:
    return registry.resolve(name, "encoders").Config(**SMALL[name])


def views(num_views: int = 2) -> Batch:
    x = torch.randn(num_views * 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch([Views(x=x, stream="image", role="global", num_views=num_views)])


# these read columns alone: test_pytorch_tabular.py, test_leave_one_out.py
@pytest.mark.parametrize(
    "name", [n for n in registry.names("encoders") if n not in ("pytorch_tabular", "leave_one_out")]
)
def test_every_encoder_gives_features_and_trains(name: str) -> None:
    pytest.importorskip({"timm": "timm", "huggingface": "transformers"}.get(name, "torch"))
    torch.manual_seed(0)
    cfg = config(name)
    assert from_dict(Encoder.Config, to_dict(cfg), trust=TYPED) == cfg
    encoder: Encoder = cfg.build(SPEC)
    encoder.prepare_for(frozenset({"none"}))
    first, second = encoder([*views(), *views(1)])
    assert first.pooled.shape == (8, encoder.dim)
    assert first.tokens.shape == (8, TOKENS[name], encoder.dim)
    assert second.pooled.shape == (4, encoder.dim)
    assert torch.isfinite(first.tokens).all()

    encoders = Encoders({"image": encoder})
    objective = VICReg.Config(projector=MLPHead.Config(hidden=8, out=8)).build(encoders, {"image": SPEC})
    learner = Learner(encoders, objective)
    optimizer = AdamW.Config(lr=1e-3, layer_decay=0.9).build(learner, [], 4)
    idle = {n for n, p in learner.named_parameters() if p.requires_grad}
    for step in range(2):
        progress = Progress(step=step, total=2)
        losses = learner(views(), progress)
        learner.backward(losses)
        assert torch.isfinite(losses.total)
        idle -= {n for n, p in learner.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step(progress)
        optimizer.zero_grad()
    assert not {n for n in idle if "key" not in n and "k_proj.bias" not in n}  # a key's bias moves no softmax

    fresh = Encoders({"image": cfg.build(SPEC)})
    fresh.load_state_dict(encoders.state_dict())
    found, again = (e.eval().encode(views())[0].pooled for e in (encoders, fresh))
    torch.testing.assert_close(found, again, rtol=0, atol=0)
    twin = copy.deepcopy(encoder)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in encoder.parameters()}
    assert {id(u) for u in twin.shard_units()} <= {id(m) for m in twin.modules()}
    promised = depths_of(encoders)["image"]
    (features,) = encoders.encode(views(), "none", promised)
    assert [t.shape for t in features.inner] == [first.tokens.shape] * promised
    layers = {encoder.layer_id(n) for n, _ in encoder.named_parameters()}
    assert layers <= set(range(encoder.depth + 2))
