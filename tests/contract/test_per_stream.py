"""Modules by stream: order, names that torch cannot hold, copies, and names of parameters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import StreamSpec
from multissl.encoders.mlp import MLPEncoder
from multissl.parallel.state import load_state, save_state
from multissl.weights.files import read_weights, save_weights

ORDINARY = ("normal", "image", "projectors", "ü", "my-stream", "a b", "rl_2", "weight", "0", "日本")
"""Names that torch holds as they are."""
HOSTILE = (
    "a.b", "blocks.0", ".", "..", "a.", ".a", "", "training", "keys", "values", "items", "key", "stream", "encode",
    "type", "forward", "state_dict", "T_destination", "_x", "_modules", "_parameters", "__class__", "__init__",
    "%", "%%", "%2E", "%25", "a%2Eb", "%6B%65%79%73", "%5F%78", "%2525", "%zz", "100%", "ü.ü", "_ü", "%C3%BC",
)  # fmt: skip
"""Names with dots, names of attributes, and names that look like others once they are escaped."""
NAMES = ORDINARY + HOSTILE
SPEC = StreamSpec(kind="columns", shape=(3,), num_tokens=3)


def scales(*streams: str) -> PerStream[nn.Linear]:
    """A layer by stream, whose weight is its place."""
    made = PerStream({s: nn.Linear(1, 1) for s in streams})
    for place, module in enumerate(made.values()):
        nn.init.constant_(module.weight, place)
    return made


def weights(modules: PerStream[nn.Linear]) -> dict[str, float]:
    return {stream: module.weight.item() for stream, module in modules.items()}


def encoders(*streams: str) -> Encoders:
    return Encoders({s: MLPEncoder.Config(dims=(2,)).build(SPEC) for s in streams})


def test_streams_keep_the_order_of_insertion() -> None:
    streams = ("text", "image", "audio", "", "a.b")
    made = scales(*streams)
    assert [*made] == [*made.keys()] == [stream for stream, _ in made.items()] == [*streams]
    assert [m.weight.item() for m in made.values()] == [0, 1, 2, 3, 4]
    assert [*made.children()] == [*made.values()]
    made["image"] = nn.Linear(1, 1)  # keeps its place
    made["rl"] = nn.Linear(1, 1)
    assert [*made] == [*streams, "rl"]
    assert len(made) == 6


@pytest.mark.parametrize("kind", [PerStream, Encoders])
@pytest.mark.parametrize("name", NAMES)
def test_a_stream_may_have_any_name(kind: type[PerStream[Encoder]], name: str) -> None:
    module, other = (MLPEncoder.Config(dims=(2,)).build(SPEC) for _ in range(2))
    made = kind({name: module, "other": other})
    assert [*made] == [name, "other"]
    assert made[name] is module
    assert name in made
    assert made.stream(made.key(name)) == name
    assert [*made.named_children()] == [(made.key(name), module), ("other", other)]
    assert made.get_submodule(made.key(name)) is module


def test_all_names_stand_beside_each_other() -> None:
    assert (
        len({PerStream.key(name) for name in NAMES})
        == len({Encoders.key(name) for name in NAMES})
        == len(NAMES)
    )
    made = scales(*NAMES)
    assert weights(made) == {name: place for place, name in enumerate(NAMES)}
    assert len(made.state_dict()) == 2 * len(NAMES)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_escaped_is_no_attribute_and_holds_no_dot(name: str) -> None:
    key = Encoders.key(name)
    assert key
    assert "." not in key
    assert not hasattr(Encoders(), key)


@pytest.mark.parametrize("missing", ["b", "a.b", "keys", "", "%61", "encode"])
def test_a_stream_that_is_not_there_is_not_found(missing: str) -> None:
    made = encoders("a", "image")
    assert missing not in made
    with pytest.raises(KeyError):
        made[missing]


def test_what_is_no_name_is_no_stream() -> None:
    assert 0 not in scales("0")
    assert None not in scales("None")


def test_a_copy_has_the_streams_and_modules_of_its_own() -> None:
    made = encoders(*NAMES)
    twin = copy.deepcopy(made)
    assert isinstance(twin, Encoders)
    assert [*twin] == [*made]
    for stream in NAMES:
        assert twin[stream] is not made[stream]
        for ours, theirs in zip(twin[stream].parameters(), made[stream].parameters(), strict=True):
            assert ours is not theirs
            assert torch.equal(ours, theirs)


def test_a_mapping_of_the_modules_is_made_as_from_any_mapping() -> None:
    made = scales("text", "", "a.b")
    assert dict(made.items()) == {**made} == {s: made[s] for s in ("text", "", "a.b")}


def test_ordinary_names_are_those_of_a_dictionary_of_modules() -> None:
    """So that files of earlier versions are read."""
    modules = {name: nn.Linear(1, 1) for name in ORDINARY}
    assert [*PerStream(modules).state_dict()] == [*nn.ModuleDict(modules).state_dict()]
    assert all(PerStream.key(name) == Encoders.key(name) == name for name in ORDINARY)


def test_a_state_returns_to_its_streams() -> None:
    made, other = scales(*NAMES), scales(*reversed(NAMES))
    other.load_state_dict(made.state_dict())
    assert weights(other) == weights(made)


@pytest.mark.parametrize("kept_by", ["weights", "checkpoint"])
def test_a_state_returns_to_its_streams_from_files(kept_by: str, tmp_path: Path) -> None:
    made, other = scales(*NAMES), scales(*reversed(NAMES))
    if kept_by == "weights":
        save_weights(tmp_path / "a.safetensors", made.state_dict())
        other.load_state_dict(read_weights(tmp_path / "a.safetensors"))
    else:
        save_state(made.state_dict(), tmp_path / "a")
        state: dict[str, Tensor] = other.state_dict()
        load_state(state, tmp_path / "a")
        other.load_state_dict(state)
    assert weights(other) == weights(made)


def test_modules_are_moved_trained_and_counted_as_a_module_s_own() -> None:
    made = encoders("a.b", "keys", "")
    assert len([*made.parameters()]) == sum(len([*e.parameters()]) for e in made.values())
    assert not made.eval()["a.b"].training
    assert made.train()["a.b"].training
    assert all(p.device.type == "meta" for p in made.to("meta").parameters())
