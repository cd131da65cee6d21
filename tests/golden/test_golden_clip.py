"""Golden family `encoders_hf`, variant hf_clip: two wrapped Hugging Face towers under our CLIP objective.

The towers are CLIPTextModel and CLIPVisionModel as `HuggingFaceEncoder` builds them, the linear maps and the scale are
the objective's. CLIP's maps have no bias; ours is set to 0 and its gradient is not among the stored ones.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.layers.heads import MLPHead
from multissl.losses.nce import scores
from multissl.objectives.clip import CLIP
from multissl.weights.loading import load_state
from tests.golden import Case, cases

pytestmark = pytest.mark.reference
EOS = 59
"""The text is read off at its first such id."""


def build(case: Case, heads: int) -> tuple[Encoders, Any]:
    """Towers and objective with the case's weights."""
    c, state = case.hyper["c"], case.tensors("param")
    prefix = {"image": "vision_model.", "text": "text_model."}
    common = {"num_hidden_layers": 2, "num_attention_heads": heads, "projection_dim": c["P"]}
    vision = {"hidden_size": c["vD"], "intermediate_size": 2 * c["vD"], "patch_size": c["p"]}
    text = {
        "hidden_size": c["tD"], "intermediate_size": 2 * c["tD"], "max_position_embeddings": c["L"],
        "eos_token_id": EOS, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    places = (c["img"] // c["p"]) ** 2
    specs = {
        "image": StreamSpec(
            kind="grid", shape=(3, c["img"], c["img"]), num_tokens=places, patch=(c["p"],) * 2
        ),
        "text": StreamSpec(kind="sequence", shape=(c["L"],), num_tokens=c["L"], vocab=60),
    }
    kinds: dict[str, dict[str, Any]] = {
        "image": {"model_type": "clip_vision_model", **common, **vision},
        "text": {"model_type": "clip_text_model", **common, **text},
    }
    encoders = Encoders(
        {
            s: HuggingFaceEncoder(HuggingFaceEncoder.Config(config=kinds[s], pooling="pooler"), specs[s])
            for s in specs
        }
    ).eval()
    for stream, encoder in encoders.items():
        own = encoder.state_dict().keys()
        named = {
            f"net.{n.removeprefix(prefix[stream])}": t
            for n, t in state.items()
            if n.startswith(prefix[stream])
        }
        whole = {f"net.{n}": t for n, t in state.items() if n.startswith(prefix[stream])}
        load_state(encoder, named if named.keys() <= own else whole)
    head = MLPHead.Config(out=c["P"], layers=1, norm="none")
    objective = CLIP(CLIP.Config(projector=head, largest_scale=1e9), encoders, specs)
    for stream, name in (("image", "visual_projection.weight"), ("text", "text_projection.weight")):
        linear: Any = objective.projectors[stream]
        linear.mlp[0].weight.data.copy_(state[name])
        linear.mlp[0].bias.data.zero_()
    assert objective.scale is not None
    objective.scale.logit_scale.data.fill_(float(state["logit_scale"]))
    return encoders, objective


def views_of(case: Case) -> list[Views]:
    given: dict[str, Tensor] = case.tensors("in")
    image = given["image_u8"].float() / 128 - 1
    return [
        Views(x=image, stream="image", role="clean"),
        Views(x=given["input_ids"], stream="text", role="clean", valid=given["attention_mask"].bool()),
    ]


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_clip"))
def test_golden_hf_clip(case: Case) -> None:
    pytest.importorskip("transformers", reason="the extra `text` is not installed")
    encoders, objective = build(case, heads=2)
    batch = views_of(case)
    towers = objective.exported(encoders).encode(batch)
    image, text = (torch.nn.functional.normalize(f.embedding, dim=1) for f in towers)
    case.check(image, "out", "image_embeds")
    case.check(text, "out", "text_embeds")
    case.check(scores(image, text, objective.scale()), "out", "logits_per_image")
    if len(image) < 2:  # a batch of one is refused by the objective: nothing to tell it from
        with pytest.raises(ValueError, match="clip needs 2 or more"):
            objective(encoders, batch, Progress(step=0, total=1))
        return
    losses = objective(encoders, batch, Progress(step=0, total=1))
    case.check(losses.total, "out", "loss")
    losses.total.backward()
    for stream, name in (("image", "visual_projection.weight"), ("text", "text_projection.weight")):
        case.check(objective.projectors[stream].mlp[0].weight.grad, "grad", name)
    case.check(objective.scale.logit_scale.grad[0], "grad", "logit_scale")
    assert math.isclose(
        float(losses.stats["scale"]), math.exp(float(case.tensors("param")["logit_scale"])), rel_tol=1e-5
    )
