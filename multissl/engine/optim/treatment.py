"""How the optimizer treats a parameter: what it is, how deep it lies, and the rules that objectives declare.

Groups follow DINOv2: layer-wise decay ** (depth + 1 - layer), a factor for the patch projection, no weight decay on
biases, norms and whatever else is a vector or a number (LayerScale, a temperature) unless `decay_vectors` asks for it.
What a parameter is depends on the
module that owns it and never on its path, as streams are called what their user likes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from multissl.contract.abilities import DeclaresParameters
from multissl.contract.learning import ParamRule
from multissl.contract.per_stream import ParameterPerStream
from multissl.engine.learner import Learner

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Normalization as torch has it; `_NormBase` is the base of batch and instance norms."""


class Kind(NamedTuple):
    """What a parameter is."""

    vector: bool = False
    """A bias, part of a norm, of fewer than two axes, or declared to have no weight decay."""
    token: bool = False
    """A class, mask or register token, or positions."""
    patch: bool = False
    """Part of the patch projection."""


class Treatment(NamedTuple):
    """What distinguishes one parameter group from another."""

    lr: float
    decay: float
    frozen_steps: int
    constant: bool = False


def groups_of(learner: Learner, cfg: Any, rules: Iterable[ParamRule]) -> dict[Treatment, list[nn.Parameter]]:
    """Return the trainable parameters of a learner by their treatment, in the order in which they are registered."""
    declared: dict[int, list[ParamRule]] = defaultdict(list)
    for rule in rules:
        for parameter in rule.parameters():
            declared[id(parameter)].append(rule)
    kinds = kinds_of(learner)
    groups: dict[Treatment, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for parameter, layer, depth in placed(learner):
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            kind, own = kinds[id(parameter)], declared[id(parameter)]
            groups.setdefault(treatment(kind, layer, depth, cfg, own), []).append(parameter)
    return groups


def placed(learner: Learner) -> Iterator[tuple[nn.Parameter, int, int]]:
    """Yield every parameter with its layer and depth; what lies outside the encoders counts as their last layer."""
    for encoder in learner.encoders.values():
        for name, parameter in encoder.named_parameters():
            yield parameter, encoder.layer_id(name), encoder.depth
    for parameter in learner.objective.parameters():
        yield parameter, 1, 0


def kinds_of(module: nn.Module) -> dict[int, Kind]:
    """Return what every parameter is, by its id: asked of the module that owns it and of those that declare it."""
    declaring = [m for m in module.modules() if isinstance(m, DeclaresParameters)]
    tokens = {id(p) for m in declaring for p in m.token_parameters()}
    patches = {id(p) for m in declaring for p in m.patch_parameters()}
    undecayed = {id(p) for m in declaring for p in m.undecayed_parameters()}
    kinds: dict[int, Kind] = {}
    for owner in module.modules():
        # The keys of these are data, such as streams: one may be called bias.
        keyed = isinstance(owner, nn.ParameterDict | ParameterPerStream)
        for attribute, parameter in owner.named_parameters(recurse=False):
            vector = parameter.ndim < 2 or isinstance(owner, NORMS) or (attribute == "bias" and not keyed)
            place = id(parameter)
            kinds[place] = Kind(vector or place in undecayed, place in tokens, place in patches)
    return kinds


def treatment(kind: Kind, layer: int, depth: int, cfg: Any, rules: Iterable[ParamRule] = ()) -> Treatment:
    """Return the factors of a parameter by its kind, its layer (0..depth+1) and the rules that hold for it."""
    lr = cfg.layer_decay ** (depth + 1 - layer)
    if kind.patch:
        lr *= cfg.patch_lr
    if kind.vector:
        lr *= cfg.vector_lr
    exempt = (kind.vector and not cfg.decay_vectors) or (kind.token and not cfg.decay_tokens)
    decay, frozen, constant = 0.0 if exempt else 1.0, 0, False
    for rule in rules:
        lr, decay, frozen = lr * rule.lr, decay * rule.decay, max(frozen, rule.frozen_steps)
        constant = constant or rule.constant
    return Treatment(lr, decay, frozen, constant)
