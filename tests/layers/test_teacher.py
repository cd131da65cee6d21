from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Masking
from multissl.layers.teacher import Teacher


def student() -> dict[str, nn.Module]:
    return {"net": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 2)}


def move(students: dict[str, nn.Module], by: float = 1.0) -> None:
    """What an optimizer step and a forward pass would do to the student."""
    with torch.no_grad():
        for module in students.values():
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor += int(by) if not tensor.is_floating_point() else by


def weights(modules: PerStream[nn.Module] | dict[str, nn.Module]) -> Tensor:
    return torch.cat([p.detach().flatten() for m in modules.values() for p in m.parameters()])


def after(rule: Any, steps: int, epoch_steps: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Weights of student and teacher at the start of every step, and once more at the end."""
    students = student()
    teacher = Teacher(Teacher.Config(rule=rule, ema=0.9, final_ema=0.9), students)
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(steps + 1):
        seen[0].append(weights(students))
        seen[1].append(weights(teacher.now))
        move(students)
        teacher.update(students, Progress(step=step, total=steps, epoch_steps=epoch_steps))
    return seen


def test_ema_is_the_published_update() -> None:
    students, teachers = after("ema", 3)
    for step in range(3):
        torch.testing.assert_close(teachers[step + 1], 0.9 * teachers[step] + 0.1 * students[step + 1])


def test_copy_is_the_student_itself_and_previous_step_is_one_behind() -> None:
    students, teachers = after("copy", 3)
    assert all(torch.equal(s, t) for s, t in zip(students, teachers, strict=True))
    students, teachers = after("previous_step", 3)
    assert torch.equal(teachers[0], students[0])
    assert all(torch.equal(s, t) for s, t in zip(students[:-1], teachers[1:], strict=True))


def test_previous_epoch_holds_the_student_of_the_last_epochs_end() -> None:
    students, teachers = after("previous_epoch", 6, epoch_steps=2.5)  # epochs begin at steps 0, 3, 5
    begins = [0, 0, 0, 3, 3, 5, 5]
    assert all(torch.equal(teachers[step], students[begins[step]]) for step in range(7))


def test_frozen_never_moves() -> None:
    _, teachers = after("frozen", 3)
    assert all(torch.equal(t, teachers[0]) for t in teachers)


def test_the_momentum_rises_to_its_final_value() -> None:
    students = student()
    teacher = Teacher(Teacher.Config(ema=0.5, final_ema=1.0), students)
    start = weights(students)
    move(students, 8.0)
    teacher.update(students, Progress(step=0, total=10))
    torch.testing.assert_close(weights(teacher.now), start + 4)
    teacher.update(students, Progress(step=10, total=10))
    torch.testing.assert_close(weights(teacher.now), start + 4)


@pytest.mark.parametrize(("buffers", "expected"), [("copy", 1.0), ("keep", 0.0), ("ema", 0.25)])
def test_buffers_are_copied_kept_or_averaged(buffers: Any, expected: float) -> None:
    students = student()
    teacher = Teacher(Teacher.Config(ema=0.75, buffers=buffers), students)
    move(students)
    teacher.update(students, Progress(step=0, total=10))
    torch.testing.assert_close(teacher["net"][1].running_mean, torch.full((2,), expected))
    assert teacher["net"][1].num_batches_tracked == (0 if buffers == "keep" else 1)


def test_a_teacher_is_a_copy_in_eval_mode_without_gradient() -> None:
    students = student()
    teacher = Teacher(Teacher.Config(), students)
    holder = nn.ModuleDict({"teacher": teacher}).train()
    assert holder.training
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for m in students.values() for p in m.parameters())
    assert torch.equal(weights(students), weights(teacher.now))


def test_small_shares_are_not_lost_and_half_precision_is_refused() -> None:
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight)
    students: dict[str, nn.Module] = {"net": net}
    teacher = Teacher(Teacher.Config(ema=0.9999, final_ema=0.9999), students)
    move(students)
    for step in range(10):
        teacher.update(students, Progress(step=step, total=10))
    torch.testing.assert_close(teacher["net"].weight, torch.tensor([[1.001]]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"net\.weight is torch.bfloat16"):
        Teacher(Teacher.Config(), {"net": nn.Linear(1, 1, dtype=torch.bfloat16)})


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match=r"objective\.teacher\.ema=1\.5: want 0 to 1"):
        Teacher.Config(ema=1.5)


def test_blocks_of_encoders_are_units_of_their_own() -> None:
    class Net(Encoder):
        dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.block, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

        def forward(
            self, views: Sequence[Views], masking: Masking = "none", inner: int = 0
        ) -> list[Features]:
            raise NotImplementedError

        def shard_units(self) -> list[nn.Module]:
            return [self.block]

    students = {"encoders": Encoders({"net": Net()}), "head": nn.Linear(2, 2)}
    teacher = Teacher(Teacher.Config(rule="previous_step"), students)
    expected = [
        teacher.now.get_submodule("encoders.net.block"),
        teacher.now["head"],
        teacher.next.get_submodule("encoders.net.block"),
        teacher.next["head"],
    ]
    assert teacher.shard_units() == expected


def test_a_stretched_run_ends_before_the_momentum_does() -> None:
    students = student()
    teacher = Teacher(Teacher.Config(ema=0.5, final_ema=1.0, ema_shape="linear", stretch=2.0), students)
    start = weights(students)
    move(students, 8.0)
    teacher.update(students, Progress(step=10, total=10))  # half of the way to 1
    torch.testing.assert_close(weights(teacher.now), start + 2)
    with pytest.raises(ValueError, match=r"teacher\.stretch"):
        Teacher.Config(stretch=0.5)
