"""What a checkpoint keeps is what a run goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from multissl.engine import checkpoint
from multissl.engine.checkpoint import Save
from tests.helpers.ranks import run_ranks


class Late(nn.Module):
    """Two layers, of which the second is used from some step on."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, late: bool) -> Tensor:
        y = self.early(x)
        return (self.late(y) if late else y).square().mean()


def made(kind: str) -> tuple[Late, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = Late()
    if kind == "adamw":
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9 if kind == "momentum" else 0.0)


def trained(module: Late, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        module(x, late=step >= 5).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_a_parameter_that_never_had_a_gradient_is_resumed_as_it_was(kind: str, tmp_path: Path) -> None:
    whole = made(kind)
    trained(*whole, range(3))
    checkpoint.save(tmp_path, 3, *whole, Save())
    resumed = made(kind)
    assert checkpoint.load(checkpoint.find(tmp_path)[-1], *resumed) == 3
    for each in (whole, resumed):
        trained(*each, range(3, 8))  # the late layer begins at step 5, with a state of its own
    for name, tensor in whole[0].state_dict().items():
        torch.testing.assert_close(resumed[0].state_dict()[name], tensor, rtol=0, atol=0)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Checkpoints of steps 1 to 3."""
    module, optimizer = made("adamw")
    for step in range(3):
        trained(module, optimizer, range(step, step + 1))
        checkpoint.save(tmp_path, step + 1, module, optimizer, Save(keep_last=3))
    return checkpoint.find(tmp_path)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    else:
        file.write_bytes(data[: {"empty": 0, "a byte short": -1}[how]])


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "a byte short"])
@pytest.mark.parametrize("name", ["rank_00000.safetensors", "state.json", "meta.json"])
def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_takes_its_place(
    three: list[Path], name: str, how: str
) -> None:
    if (name, how) == ("meta.json", "missing"):
        return  # then it is none: meta.json is written last
    damage(three[2] / name, how)
    said: list[str] = []
    newest = checkpoint.newest_whole(three[0].parent, said.append)
    assert newest
    assert newest[0] == three[1]
    assert len(said) == 1
    assert str(three[2] / name) in said[0]
    assert "going on from the checkpoint of step 2" in said[0]
    assert three[2].with_name("damaged_step_00000003").is_dir()
    assert checkpoint.newest_step(three[0].parent) == 2


def test_what_was_half_written_or_half_removed_is_gone_after_a_start(three: list[Path]) -> None:
    for name in ("writing_step_00000004", "removing_step_00000000"):
        (three[0].parent / name).mkdir()
        (three[0].parent / name / "state.json").write_text("{")
    assert checkpoint.newest_whole(three[0].parent, print)
    assert sorted(three[0].parent.iterdir()) == three


def test_where_every_checkpoint_is_damaged_all_are_named_and_left(three: list[Path]) -> None:
    for folder in three:
        damage(folder / "rank_00000.safetensors", "flipped")
    with pytest.raises(ValueError, match=r"(?s)no checkpoint is whole.*00003.*00002.*00001.*--restart"):
        checkpoint.newest_whole(three[0].parent, print)
    assert checkpoint.find(three[0].parent) == three


def test_a_checkpoint_under_another_name_is_refused(three: list[Path]) -> None:
    moved = three[2].rename(three[2].with_name("step_00000400"))
    with pytest.raises(ValueError, match=r"step_00000400 holds the checkpoint of step 3"):
        checkpoint.newest_whole(moved.parent, print)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ('{"format": 99, "step": 3}', "format 99, this version reads up to 3: upgrade"),
        ('{"format": 2, "step": 3}', "format 2: it is pickled.*--trust.*--restart"),
    ],
)
def test_a_checkpoint_of_another_format_is_refused(three: list[Path], meta: str, message: str) -> None:
    (three[2] / "meta.json").write_text(meta)
    with pytest.raises(ValueError, match=message):
        checkpoint.newest_whole(three[0].parent, print)


@pytest.mark.parametrize(
    "meta", ['{"format": "3", "step": 3}', '{"format": 3, "step": 3}', "[]", "{}", "null"]
)
def test_a_checkpoint_that_says_nothing_of_itself_is_damaged(three: list[Path], meta: str) -> None:
    (three[2] / "meta.json").write_text(meta)
    newest = checkpoint.newest_whole(three[0].parent, print)
    assert newest
    assert newest[0] == three[1]


def test_copies_and_folders_of_other_names_are_no_checkpoints(three: list[Path]) -> None:
    for name in ("step_00000009 copy", "step_tmp", "old_step_00000003"):
        shutil.copytree(three[2], three[2].with_name(name))
    assert checkpoint.find(three[0].parent) == three


def test_a_checkpoint_holds_no_pickle(three: list[Path]) -> None:
    assert {p.name for p in three[2].iterdir()} == {"rank_00000.safetensors", "state.json", "meta.json"}
    groups = json.loads((three[2] / "state.json").read_text())["values"]["optimizer/groups"]
    assert groups[0]["betas"] == [0.9, 0.999]
    module, optimizer = made("adamw")
    checkpoint.load(three[2], module, optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_parts_are_read_from_no_other_file(three: list[Path]) -> None:
    index = json.loads((three[2] / "state.json").read_text())
    for tensor in index["tensors"].values():
        tensor["parts"][0]["file"] = "../step_00000001/rank_00000.safetensors"
    (three[2] / "state.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is no file of a checkpoint"):
        checkpoint.load(three[2], *made("adamw"))


def test_an_encoder_of_another_shape_is_refused_by_name(three: list[Path]) -> None:
    module = Late()
    module.late = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"learner/late.weight is .*\[3, 3\].*the run has .*\[4, 3\]"):
        checkpoint.load(three[2], module, torch.optim.AdamW(module.parameters()))


def sharded(_rank: int, folder: str, shard: int, steps: int) -> dict[str, Tensor]:
    """Train a learner for some steps from the newest checkpoint, save it, and return its whole state."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from multissl.parallel.sharding import full

    module, _ = made("adamw")
    if shard:
        mesh = init_device_mesh("cpu", (2 // shard, shard), mesh_dim_names=("replicate", "shard"))
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    newest = checkpoint.newest_whole(Path(folder), print)
    start = checkpoint.load(newest[0], module, optimizer) if newest else 0
    trained(module, optimizer, range(start, start + steps))
    checkpoint.save(Path(folder), start + steps, module, optimizer, Save())
    return {n: full(t).detach().clone() for n, t in module.state_dict().items()}


@pytest.mark.ranks
@pytest.mark.parametrize(
    "shards", [[(2, 2), (1, 0), (2, 1)], [(1, 0), (2, 2), (1, 0)], [(2, 1), (2, 2), (2, 0)]]
)
def test_checkpoints_move_between_ranks_and_shards(tmp_path: Path, shards: list[tuple[int, int]]) -> None:
    """Rows of 3 on 2 shards are uneven; all ranks see the same rows, so that the result is that of one."""
    states = []
    for ranks, shard in shards:
        arguments = (str(tmp_path / "moved"), shard, 3)
        states.append(run_ranks(2, sharded, *arguments)[0] if ranks == 2 else sharded(0, *arguments))
    alone = [sharded(0, str(tmp_path / "one"), 0, 3) for _ in shards]
    for name, tensor in alone[-1].items():
        torch.testing.assert_close(states[-1][name], tensor)
