"""LoRA: nothing at the start, merged as unmerged, all else at rest; in a run, after a resume, and as it is shipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import multissl
from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine import checkpoint
from multissl.engine.checkpoint import Save
from multissl.layers.lora import LoRA, LowRank, adapt, merge, merged_state
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from multissl.weights.files import read_weights
from tests.helpers import stubs

SPEC = StreamSpec(kind="grid", shape=(3, 8, 8), patch=(4, 4), num_tokens=4)


def encoder(rank: int = 0, **options: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    made = TransformerEncoder(TransformerEncoder.Config(dim=8, depth=2, heads=2, **options), SPEC)
    if rank:
        adapt(made, LoRA(rank=rank), "image")
    return made


def pooled(of: TransformerEncoder) -> Tensor:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return of.eval()([Views(x=x, stream="image", role="clean")])[0].pooled


def moved(of: nn.Module) -> None:
    """Give the additions something to add."""
    for each in of.modules():
        if isinstance(each, LowRank):
            nn.init.normal_(each.up, std=0.3)


@pytest.mark.parametrize("key_bias", [True, False])
def test_merged_equals_unmerged(key_bias: bool) -> None:
    plain, made = encoder(key_bias=key_bias), encoder(rank=2, key_bias=key_bias)
    assert torch.equal(pooled(plain), pooled(made))  # at the start nothing is added
    moved(made)
    before = pooled(made)
    assert (before - pooled(plain)).abs().max() > 0.01
    plain.load_state_dict(merged_state(made, made.state_dict()))
    torch.testing.assert_close(pooled(plain), before, rtol=0, atol=1e-6)
    merge(made)
    torch.testing.assert_close(pooled(made), before, rtol=0, atol=1e-6)
    assert made.state_dict().keys() == plain.state_dict().keys()


def test_the_additions_alone_learn_and_follow_their_paper() -> None:
    made = encoder(rank=2)
    learning = {name for name, p in made.named_parameters() if p.requires_grad}
    ends = {(name.split(".")[-2], name.split(".")[-1]) for name in learning}
    assert ends == {("qkv", "down"), ("qkv", "up"), ("proj", "down"), ("proj", "up")}
    assert len(learning) == 2 * 4
    layer = LowRank(nn.Linear(4, 3), 2, alpha=6.0)
    nn.init.normal_(layer.up)
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x), layer.base(x) + 3.0 * (x @ layer.down.T @ layer.up.T))


def test_copies_of_an_encoder_have_additions_of_their_own() -> None:
    made = encoder(rank=2)
    teacher = copy.deepcopy(made)
    moved(made)
    assert not torch.equal(pooled(teacher), pooled(made))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "lora.rank=-1"),
        ({"rank": 2, "alpha": 0.0}, "lora.alpha=0.0: want more than 0"),
        ({"rank": 2, "layers": ()}, "lora.layers is empty"),
        ({"layers": ("fc1",)}, "lora.layers=fc1 with lora.rank=0 adds nothing"),
        ({"rank": 1000}, r"lora.rank=1000: qkv of encoders.image has \d+ inputs .* no addition a higher rank than"),
        ({"rank": 2, "layers": ("qvk",)}, r"lora.layers=qvk: no linear layer of encoders.image .*; did you mean qkv\?"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(encoder(), LoRA(**options), "image")


def recipe(**changes: Any) -> Recipe:
    encoder = TransformerEncoder.Config(dim=8, depth=1, heads=2)
    return stubs.recipe().replace(
        **{"encoders": {"points": encoder}, "steps": 6, "save": Save(every=2), **changes}
    )


@pytest.mark.usefixtures("lean")
def test_a_run_ships_plain_weights_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    start, run = tmp_path / "start", tmp_path / "lora"
    train(recipe(steps=2), start)
    # the sizes of the encoder are those of the run that it starts from
    lora = recipe(
        encoders={"points": TransformerEncoder.Config()}, init=str(start), lora=LoRA(rank=2), fit="init"
    )
    train(lora, run)
    before, after = read_weights(start / "encoder.safetensors"), read_weights(run / "encoder.safetensors")
    assert before.keys() == after.keys()
    changed = {
        n.rpartition(".")[0].rpartition(".")[2] for n in before if not torch.equal(before[n], after[n])
    }
    assert changed == {"qkv", "proj"}
    data = multissl.load(run).modality.dataset("val")
    samples = [data[i].data for i in range(4)]
    whole, last = multissl.load(run).encode(samples), multissl.load(f"{run}@4").encode(samples)
    assert not torch.equal(whole, last)
    for path in checkpoint.find(RunFolder(run).checkpoints)[-1:]:
        (path / checkpoint.META).unlink()
    (run / "encoder.safetensors").unlink()
    train(lora, run)
    again = read_weights(run / "encoder.safetensors")
    assert all(torch.equal(again[n], after[n]) for n in after)
    torch.testing.assert_close(multissl.load(run).encode(samples), whole)


def test_additions_to_random_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora.rank=2 keeps .* random weights: give --init PLACE"):
        train(recipe(lora=LoRA(rank=2)), tmp_path)
