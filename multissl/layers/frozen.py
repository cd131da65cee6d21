"""Frozen teachers: networks of other runs or publications, whose features or targets a student is to have.

Their weights are in no checkpoint: a digest of them is, and a checkpoint is taken up with the same weights alone. What
balances their features (PHI-S) is measured on the first batch of all ranks and is state: eigenvectors have no sign of
their own, so a resumed run keeps the matrices that it has.
Shapes: R rows, N tokens, D width.  State: the digest; mean and matrix of each kind of feature that is balanced.
Collectives: sums over ranks, in the first step alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import StreamSpec
from multissl.layers.heads import PrototypeHead
from multissl.losses.phi_s import moments, phi_s
from multissl.precision import at_least_fp32

UNTRAINED = "untrained"
"""The weights of a teacher that has learned nothing."""


class FrozenNetwork(Component, nn.Module):
    """An encoder, and perhaps heads, in evaluation mode and without gradient, filled before training.

    Built with (option, stream, spec, encoder, heads): `option` is the one that its own stand under.
    """

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a frozen network."""

        usual_option: ClassVar[str] = "objective.teachers.NAME"
        """What errors call the place of these options where nothing tells it."""

        weights: str = UNTRAINED
        """Where its weights are, as --init takes them: a run's folder, RUN@STEP, a file, a folder of Hugging Face,
        hf:NAME, timm:NAME. untrained: the weights it begins with, from which little can be learned."""
        encoder: Encoder.Config | None = None
        """Its architecture; without one that of the run, or the one that published weights ask for, and of an
        untrained teacher that of the student."""

        def __post_init__(self) -> None:
            if not self.weights:
                raise ValueError(
                    f"{self.usual_option}.weights is empty: give a file or a run's folder, or {UNTRAINED}"
                )

    digest: Tensor

    def __init__(
        self,
        cfg: Config,
        option: str,
        stream: str,
        spec: StreamSpec,
        encoder: Encoder,
        heads: Mapping[str, nn.Module] = {},
    ) -> None:
        super().__init__()
        self.cfg, self.option, self.stream, self.spec = cfg, option, stream, spec
        self.encoders = Encoders({stream: encoder})
        self.heads: PerStream[nn.Module] = PerStream(heads)
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))
        self._register_state_dict_hook(_leave_out_weights)
        self.register_load_state_dict_pre_hook(_take_up)
        self.requires_grad_(False).train(False)
        self.seal()

    @property
    def encoder(self) -> Encoder:
        """The network."""
        return self.encoders[self.stream]

    def held(self) -> dict[str, Tensor]:
        """The tensors that no state holds, by their names here."""
        parts = {"encoders": self.encoders, "heads": self.heads}
        return {f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()}

    def seal(self) -> None:
        """Note which weights it has, once they are in place; on the CPU, before anything is sharded."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.held().items()):
            if tensor.is_meta:  # an outline of the teacher, without numbers
                continue
            value, name = tensor.detach().cpu().contiguous(), name.removeprefix("encoders.")
            whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            whole.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        self.known = whole.digest()
        self.digest.copy_(torch.tensor([*self.known], dtype=torch.uint8))

    def leave_empty(self) -> None:
        """Take up any state: its weights are not here, and nobody asks for what it makes of views."""
        self.known = b""

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the network, and its heads."""
        return [*self.encoders.shard_units(), *self.heads.values()]


class FrozenTeacher(FrozenNetwork):
    """A frozen encoder whose features are learned."""

    @dataclass(kw_only=True, slots=True)
    class Config(FrozenNetwork.Config):
        """Options of a frozen teacher."""

        stream: str = ""
        """The stream it reads; empty: the only one, or the first of several."""
        patch: tuple[int, ...] = ()
        """Size of its patches where it is not the student's, such as 14 14; it divides the views."""
        weight: float = 1.0
        """Weight of what it teaches, among several teachers."""

        def __post_init__(self) -> None:
            FrozenNetwork.Config.__post_init__(self)
            if self.weight <= 0:
                raise ValueError(
                    f"objective.teachers.NAME.weight={self.weight}: want more than 0, or leave the teacher out"
                )


class PrototypeTeacher(FrozenNetwork):
    """A frozen encoder with the heads and prototypes that it was trained with."""

    @dataclass(kw_only=True, slots=True)
    class Config(FrozenNetwork.Config):
        """Options of a frozen teacher with heads."""

        usual_option: ClassVar[str] = "objective.frozen_teacher"

        head: PrototypeHead.Config | None = None
        """Its head of views; without one that of the weights, and of an untrained teacher the student's."""
        ibot_head: PrototypeHead.Config | None = None
        """Its head of tokens, if they have one of their own; found as `head` is."""

        def heads(self) -> dict[str, PrototypeHead.Config]:
            """The heads that are known, by the names that objectives have for them."""
            given = {"dino_head": self.head, "ibot_head": self.ibot_head}
            return {name: head for name, head in given.items() if head is not None}


def spec_of(cfg: FrozenTeacher.Config, name: str, spec: StreamSpec) -> StreamSpec:
    """Return what a teacher must know of its stream: that of the student, or with patches of its own size."""
    if not cfg.patch or cfg.patch == spec.patch:
        return spec
    where, space = f"objective.teachers.{name}.patch={cfg.patch}", spec.shape[1:]
    if spec.kind != "grid" or len(cfg.patch) != len(space) or spec.stride:
        raise ValueError(f"{where}: the stream's patches are {spec.patch or 'none'}, leave it empty")
    if any(n % p for n, p in zip(space, cfg.patch, strict=True)):
        raise ValueError(
            f"{where} does not divide views of {space}: change the views' size, or leave it empty"
        )
    count = prod(n // p for n, p in zip(space, cfg.patch, strict=True))
    return replace(spec, patch=cfg.patch, num_tokens=count)


def _leave_out_weights(teacher: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Take the weights of a frozen network out of a state."""
    for name in [n for n in state if n.startswith((f"{prefix}encoders.", f"{prefix}heads."))]:
        del state[name]


def _take_up(teacher: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put the weights that are in place into a state that is loaded; refuse the state of other weights."""
    saved = state.get(f"{prefix}digest")
    if saved is not None and teacher.known and bytes(saved.cpu().tolist()) != teacher.known:
        raise ValueError(
            f"{teacher.option}.weights={teacher.cfg.weights} holds other weights than those that the "
            "run was trained with so far: put those back, or --restart to begin anew"
        )
    state |= {f"{prefix}{n}": t for n, t in teacher.held().items()}


class Balance(nn.Module):
    """PHI-S of one kind of a teacher's features, which makes every channel's variance 1, measured once."""

    mean: Tensor
    turn: Tensor
    measured: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("turn", torch.eye(width))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.register_load_state_dict_post_hook(_keep_what_was_measured)
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [R, D] balanced; the first call on rows of finite numbers measures, those in `keep` (bool [R]) alone."""
        x = at_least_fp32(x)
        if not self.kept and not isinstance(
            x, FakeTensor
        ):  # of which operations are counted, without numbers
            self._measure(x, keep)
        for buffer, value in zip((self.mean, self.turn, self.measured), self.kept, strict=False):
            buffer.copy_(value)  # the trainer puts them back after a step that does not count
        return (x - self.mean.to(x.dtype)) @ self.turn.to(x.dtype).T

    def _measure(self, x: Tensor, keep: Tensor | None) -> None:
        mean, covariance = moments(x, keep)
        if not covariance.isfinite().all() or not covariance.diagonal().sum() > 0:
            return
        turn, _ = phi_s(covariance)
        self.kept = [mean.to(self.mean), turn.to(self.turn), torch.ones_like(self.measured)]


def _keep_what_was_measured(balance: Any, _: Any) -> None:
    """Go on with the matrices of a state that was loaded, if it holds any."""
    buffers = (balance.mean, balance.turn, balance.measured)
    balance.kept = [b.clone() for b in buffers] if bool(balance.measured) else []
