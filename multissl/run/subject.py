"""What is measured: a run, weights without a run, or a file of features; its encoders, data and usual protocols.

Weights without a run are read as `--init` reads them (`multissl.weights`): the encoder is what they ask for, on
pictures unless another modality is said, in views of the size and with the constants that the released model asks for.
Beside any encoder stands an untrained one, of the same architecture at random weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from multissl import registry
from multissl.build import encoders_of
from multissl.config import config_name, to_dict
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.objectives.vicreg import VICReg
from multissl.options import SHORT, Setting, apply
from multissl.recipe import Recipe
from multissl.registry import suggest
from multissl.run.feature_files import TABLES, kind_of
from multissl.run.feature_rows import STREAM, AsTheyAre, FeatureRows, holds_features
from multissl.run.folder import RunFolder, located
from multissl.run.identity import weights_digest
from multissl.run.model import Model, load
from multissl.run.protocols import Protocols, usual
from multissl.weights.containers import Source, split_layout
from multissl.weights.hubs import open_place
from multissl.weights.inputs import Inputs, inputs_of
from multissl.weights.loading import derive_configs, load_weights
from multissl.weights.reach import HUBS
from multissl.weights.released import ENDINGS

log = logging.getLogger("multissl")

DATA = (*SHORT, "masks", "depths", "ignored", "reduce_zero_label", "depth_unit")
"""Options of the modality that may change for a trained run: where its data lies, and how a table and labels of pixels
are read."""
PARTS = ("modality", "encoders", "seed")
"""What may be said of weights without a run, beside options of protocols."""


@dataclass(kw_only=True, slots=True)
class Subject:
    """What is measured."""

    place: str
    """As it was named."""
    modality: Modality
    encoders: Encoders
    device: torch.device
    protocols: Protocols
    """Those of the recipe, or what is usual."""
    untrained: Callable[[], Encoders] | None = None
    """Makes encoders of the same architecture at random weights."""
    seed: int = 0
    """Of these random weights."""
    step: int = 0
    total: int = 0
    run: RunFolder | None = None
    """Where it is a run, which keeps what is measured."""
    pooled_alone: bool = False
    """Whether pooled features are all there is."""
    about: dict[str, Any] = field(default_factory=dict)
    """What it was made of, as JSON values."""

    def weights(self) -> str:
        """Return a digest of the encoders' weights."""
        return weights_digest(self.encoders)


def subject_of(
    place: str, settings: dict[str, Setting], device: torch.device, trust: bool = False
) -> Subject:
    """Return what a place holds: `RUN`, `RUN@STEP`, a file of features, or weights as `--init` takes them.

    Settings that it takes are taken out of those that are handed in; what is left belongs to protocols.
    """
    hub = place.partition(":")[0] in HUBS
    if not hub and Path(place).is_file() and RunFolder(Path(place).parent).encoder == Path(place):
        folder = Path(place).parent  # the file that a run ships says nothing of its encoder, the run does
        place = str(folder) if RunFolder(folder).recipe.is_file() else place
    if not hub and kind_of(Path(place)) in (*TABLES, ".npy") and not Path(place).is_file():
        raise ValueError(f"no file is called {place}: name one of features, that multissl encode wrote")
    if not hub and holds_features(Path(place)):
        return _of_features(place, settings, device)
    if not hub and (located(place)[0].recipe.is_file() or not _may_be_weights(place)):
        return _of_run(place, settings, device, trust)
    return _of_weights(place, settings, device)


def _may_be_weights(place: str) -> bool:
    """Return whether a place that is no run is read as weights: a file, a folder, or a layout's name before one."""
    layout, _ = split_layout(place)
    return bool(layout) or Path(place).exists() or bool(ENDINGS.search(place))


def _pop_settings(settings: dict[str, Setting], names: tuple[str, ...]) -> dict[str, Setting]:
    return {name: settings.pop(name) for name in names if name in settings}


def _of_run(place: str, settings: dict[str, Setting], device: torch.device, trust: bool) -> Subject:
    """Return a run, with other data where some is named."""
    typed = _pop_settings(settings, ("modality",))
    for option in typed["modality"].below if typed else ():
        if option not in DATA:
            raise ValueError(
                f"{typed['modality'].below[option].flag}: a run reads data as it was trained to; of its modality "
                f"{', '.join(f'--{name}' for name in DATA)} may be others"
            )
    if typed and typed["modality"].values is not None:
        raise ValueError(f"--modality {' '.join(typed['modality'].values)}: a run has one of its own")
    model = load(place, device, trust=trust, change=lambda recipe: apply(recipe, typed))

    def untrained() -> Encoders:
        torch.manual_seed(model.recipe.seed)
        return encoders_of(model.recipe, model.modality).to(device).eval().requires_grad_(False)

    return Subject(
        place=place,
        modality=model.modality,
        encoders=model.encoders,
        device=device,
        protocols=model.recipe.evals,
        untrained=untrained,
        seed=model.recipe.seed,
        step=model.step,
        total=model.recipe.steps,
        run=located(place)[0],
        about=_about(model.recipe),
    )


def _about(recipe: Recipe) -> dict[str, Any]:
    return {"modality": to_dict(recipe.modality), "encoders": to_dict(recipe)["encoders"]}


def of_model(model: Model, place: str) -> Subject:
    """Return a run that is loaded already."""
    return Subject(
        place=place, modality=model.modality, encoders=model.encoders, device=model.device,
        protocols=model.recipe.evals, seed=model.recipe.seed, step=model.step, total=model.recipe.steps,
        run=located(place)[0], about=_about(model.recipe),
    )  # fmt: skip


def _of_features(place: str, settings: dict[str, Setting], device: torch.device) -> Subject:
    """Return a file of features."""
    typed = _pop_settings(settings, ("modality",))
    if typed and (wrong := set(typed["modality"].below) - {"label"}):
        flag = typed["modality"].below[sorted(wrong)[0]].flag
        raise ValueError(
            f"{flag}: {place} holds features, with their own rows; of options of data --label is left"
        )
    cfg = FeatureRows.Config(data=place)
    if typed:
        cfg = apply(cfg, typed["modality"].below)
    modality = cfg.build()
    width = modality.streams()[STREAM].shape[0]
    return Subject(
        place=place,
        modality=modality,
        encoders=Encoders({STREAM: AsTheyAre(width)}),
        device=torch.device("cpu"),
        protocols=usual(STREAM),
        pooled_alone=True,
        about={"features": place, "width": width, "label": cfg.label},
    )


def _of_weights(place: str, settings: dict[str, Setting], device: torch.device) -> Subject:
    """Return weights without a run, in an encoder that they ask for."""
    typed = _pop_settings(settings, PARTS)
    try:
        source = open_place(place)
        recipe = fitting_recipe(place, source, typed)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    modality = recipe.modality.build().fit()

    def untrained() -> Encoders:
        torch.manual_seed(recipe.seed)
        return encoders_of(recipe, modality).to(device).eval().requires_grad_(False)

    encoders = untrained()
    try:
        load_weights(encoders, place, source)
    except ValueError as error:
        raise ValueError(str(error).replace("--init ", "", 1)) from None
    return Subject(
        place=place,
        modality=modality,
        encoders=encoders,
        device=device,
        protocols=usual(config_name(type(recipe.modality))),
        untrained=untrained,
        seed=recipe.seed,
        about=_about(recipe),
    )


def fitting_recipe(place: str, source: Source, typed: dict[str, Setting]) -> Recipe:
    """Return a recipe whose modality and encoder are what weights want; nothing of it is trained."""
    inputs = inputs_of(source)
    kind = typed["modality"].values if "modality" in typed else None
    name = kind[0] if kind else "image"
    if name not in registry.names("modalities"):
        raise ValueError(f"--modality {name}{suggest(name, registry.names('modalities'))}")
    modality: Any = registry.resolve(name, "modalities").Config()
    if name in ("image", "video"):
        modality = modality.replace(**_views(modality, inputs))
        log.warning(
            "%s: views of %s pixels and their constants are said by %s", place, inputs.size, inputs.said_by
        )
    below = dict(typed["modality"].below) if "modality" in typed else {}
    modality = apply(modality, below) if below else modality
    streams = [*modality.build().fit().streams()]
    if len(streams) != 1:
        raise ValueError(
            f"--modality {name} feeds {', '.join(streams)}: weights of one encoder are measured on one"
        )
    recipe = Recipe(
        modality=modality,
        encoders={streams[0]: TransformerEncoder.Config()},
        objective=VICReg.Config(),
        init=place,
    )
    recipe = apply(recipe, {n: s for n, s in typed.items() if n != "modality"})
    derived = derive_configs(recipe.encoders, place, source)
    if derived == recipe.encoders and "encoders" not in typed:
        derived = {streams[0]: library_config(place, source)}
    return recipe.replace(encoders=derived)


def _views(cfg: Any, inputs: Inputs) -> dict[str, Any]:
    """Return the options of pictures or clips that weights ask for, of those that the modality has.

    Views that are never drawn here fit the patch.
    """
    options: dict[str, Any] = {"size": inputs.size, "channels": inputs.channels, "clean_zoom": inputs.zoom}
    if inputs.patch:
        options |= {"patch": inputs.patch[-1], "local_size": inputs.patch[-1], "blur": "none"}
    if len(inputs.patch) == 3:
        options["tubelet"] = inputs.patch[0]
    if inputs.mean or "channels" in to_dict(cfg):
        options |= {"mean": inputs.mean, "std": inputs.std}
    return {name: value for name, value in options.items() if name in to_dict(cfg)}


def library_config(place: str, source: Source) -> Any:
    """Return the encoder of the library that weights come from, where no layout of transformers holds them."""
    config = source.config
    if "model_type" in config:
        name = str(source.path.parent) if source.path else place.removeprefix("hf:")
        return HuggingFaceEncoder.Config(model=name)
    if "architecture" in config:
        return TimmEncoder.Config(name=str(config["architecture"]))
    raise ValueError(
        "nothing tells which network these weights are of: name the folder that holds its config.json, or the "
        "encoder, as --encoders.image resnet --encoders.image.depth 50"
    )


def protocols_that_fit(subject: Subject, protocols: Protocols) -> tuple[Protocols, list[str]]:
    """Return the protocols that a subject can be measured by, and a line for each of the others."""
    if not subject.pooled_alone:
        return protocols, []
    fitting: Protocols = {}
    lines: list[str] = []
    for name, cfg in protocols.items():
        owner: type[Evaluator] = cfg.owner
        if owner.reads == "pooled":
            fitting[name] = cfg
        else:
            lines.append(
                f"{name} wants an encoder (tokens, other views, or more than labels), and {subject.place} holds "
                "pooled features alone: it is left out"
            )
    return fitting, lines
