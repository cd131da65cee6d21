"""A recipe: everything a run is, as one config. `check` says what does not fit, `build` makes the components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from multissl.config import from_dict
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.evaluator import Evaluator
from multissl.contract.learning import ParamRule
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.loop import Loop
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.files import SEAL
from multissl.layers.lora import LoRA
from multissl.migrate import FORMAT, migrate
from multissl.plain_data import parse_json, parse_yaml
from multissl.registry import suggest
from multissl.trust import NOTHING, Trust, UntrustedError


@dataclass(kw_only=True, slots=True)
class Recipe(Loop):
    """What is trained, on what, by what: the options of the loop and of every component."""

    modality: Modality.Config
    """What turns data into views."""
    encoders: dict[str, Encoder.Config]
    """By stream; a modality of one stream has one."""
    objective: Objective.Config
    """What turns features into a loss."""
    optim: Optimizer.Config = field(default_factory=AdamW.Config)
    """The optimizer."""
    evals: dict[str, Evaluator.Config] = field(default_factory=dict)
    """Evaluators, by the names of their metrics."""
    init: str = ""
    """Weights that the encoder starts from: a file (.safetensors, .pth, .bin, .ckpt), a folder of a model or run,
    `RUN@STEP`, `hf:NAME` or `timm:NAME`; `dino:FILE` says whose a file is where it does not tell. Of a published model
    the encoder's options that stand at their defaults are taken from the weights, all of them after
    `--encoders.STREAM transformer`."""
    fit: Literal["data", "init"] = "data"
    """Where the modality has from what its options leave open (vocabulary, statistics, schema): it is measured on the
    data; or, init, taken from the run that `init` names, whose weights mean that."""
    frozen: int = 0
    """Steps at the start in which encoders rest while heads learn; for encoders that start from weights."""
    lora: LoRA = field(default_factory=LoRA)
    """Small additions that learn in the place of the encoders, which rest; for encoders that start from weights."""
    locked: tuple[str, ...] = ()
    """Streams whose encoder stays as it starts, in evaluation mode and without gradient (LiT); its weights come from
    `init` or from the encoder's own `pretrained`."""
    lr_by_stream: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rates of streams' encoders, such as image=0.1 for a pretrained one; 1 where none is."""

    def __post_init__(self) -> None:
        super(Recipe, self).__post_init__()
        if self.optim.warmup + self.optim.cooldown > self.steps and self.optim.cooldown:
            raise ValueError(
                f"optim.cooldown={self.optim.cooldown} and optim.warmup={self.optim.warmup} are more than "
                f"steps={self.steps}: want steps for both"
            )
        if self.frozen < 0:
            raise ValueError(f"frozen={self.frozen}: want 0 or a number of steps")
        for option, names in (("locked", self.locked), ("lr_by_stream", self.lr_by_stream)):
            for stream in (s for s in names if s not in self.encoders):
                raise ValueError(f"{option} names {stream!r}, no stream{suggest(stream, self.encoders)}")
        for stream, factor in self.lr_by_stream.items():
            if not factor > 0:
                raise ValueError(
                    f"lr_by_stream.{stream}={factor}: want more than 0, or lock the encoder: --locked {stream}"
                )
            if stream in self.locked:
                raise ValueError(f"lr_by_stream.{stream}={factor}: {stream} is locked and learns nothing")

    def rules(self, encoders: Encoders) -> list[ParamRule]:
        """Return `lr_by_stream` and `frozen` as the optimizer reads them."""
        rules = [ParamRule(of=encoders[s], lr=factor) for s, factor in self.lr_by_stream.items()]
        frozen = [ParamRule(of=encoder, frozen_steps=self.frozen) for encoder in encoders.values()]
        return rules + (frozen if self.frozen else [])


def read_recipe(path: Path, trust: Trust = NOTHING) -> Recipe:
    """Return the recipe of a JSON or YAML file; code that it names is refused unless `trust` allows it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start})") from None
    parse = parse_yaml if path.suffix in (".yaml", ".yml") else parse_json
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: want a mapping of options")
    return recipe_of(data, str(path), trust)


def recipe_of(options: Mapping[str, Any], name: str, trust: Trust = NOTHING) -> Recipe:
    """Return the recipe of options as files hold them; `name` is what messages call the file."""
    data = dict(options)
    # a file that somebody wrote says no format: it is checked as one of today
    written = data.pop("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"{name} has recipe format {written!r} ({data.get('multissl')}), this version reads up to {FORMAT}: upgrade"
        )
    data.pop("multissl", None)
    data.pop(SEAL, None)  # whether it is whole is asked of the file of a run; a copy may be edited
    old = written < FORMAT
    try:
        return from_dict(Recipe, migrate(data) if old else data, old=old, trust=trust)
    except UntrustedError as error:
        raise UntrustedError(f"{name}: {error}") from None
    except (ValueError, TypeError) as error:  # the latter of an option that is needed and missing
        raise ValueError(f"{name}: {error}") from None
