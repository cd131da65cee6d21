"""Names: a component or recipe by its short name, loaded only when it is used.

Third parties add theirs with an entry point `multissl.GROUP` for every key of `GROUPS`, such as `multissl.encoders`,
and `multissl.recipes`. In Python nothing needs a name: a recipe holds the config itself.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from multissl.trust import import_named

log = logging.getLogger("multissl")

GROUPS: dict[str, dict[str, str]] = {
    "modalities": {
        "image": "multissl.modalities.image.adapter:Image",
        "audio": "multissl.modalities.audio.adapter:Audio",
        "tabular": "multissl.modalities.tabular.adapter:Tabular",
        "text": "multissl.modalities.text.adapter:Text",
        "video": "multissl.modalities.video.adapter:Video",
        "rl": "multissl.modalities.rl.adapter:RL",
        "paired": "multissl.modalities.paired.adapter:Paired",
    },
    "sources": {
        "folder": "multissl.sources.folder:FolderSource",
        "table": "multissl.sources.table:TableSource",
        "tar": "multissl.sources.tar:TarSource",
        "parquet": "multissl.sources.parquet:ParquetSource",
        "shards": "multissl.sources.shards:PatternSource",
        "torchvision": "multissl.sources.torchvision:TorchvisionSource",
        "hugging_face": "multissl.sources.hugging_face:HuggingFaceSource",
    },
    "encoders": {
        "transformer": "multissl.encoders.transformer:TransformerEncoder",
        "resnet": "multissl.encoders.resnet:ResNetEncoder",
        "mlp": "multissl.encoders.mlp:MLPEncoder",
        "nature": "multissl.encoders.nature:NatureEncoder",
        "timm": "multissl.encoders.timm:TimmEncoder",
        "huggingface": "multissl.encoders.huggingface:HuggingFaceEncoder",
        "module": "multissl.encoders.module:ModuleEncoder",
        "leave_one_out": "multissl.encoders.leave_one_out:LeaveOneOutEncoder",
        "pytorch_tabular": "multissl.encoders.pytorch_tabular:PytorchTabularEncoder",
    },
    "objectives": {
        "dino": "multissl.objectives.dino:DINO",
        "dino_distill": "multissl.objectives.dino_distill:DINODistill",
        "infonce": "multissl.objectives.infonce:InfoNCE",
        "moco": "multissl.objectives.moco:MoCo",
        "nnclr": "multissl.objectives.nnclr:NNCLR",
        "clip": "multissl.objectives.clip:CLIP",
        "siglip": "multissl.objectives.siglip:SigLIP",
        "byol": "multissl.objectives.byol:BYOL",
        "spr": "multissl.objectives.spr:SPR",
        "vicreg": "multissl.objectives.vicreg:VICReg",
        "vicregl": "multissl.objectives.vicregl:VICRegL",
        "barlow": "multissl.objectives.barlow:BarlowTwins",
        "wmse": "multissl.objectives.wmse:WMSE",
        "tico": "multissl.objectives.tico:TiCo",
        "mmcr": "multissl.objectives.mmcr:MMCR",
        "lejepa": "multissl.objectives.lejepa:LeJEPA",
        "visreg": "multissl.objectives.visreg:VISReg",
        "simdino": "multissl.objectives.simdino:SimDINO",
        "swav": "multissl.objectives.swav:SwAV",
        "msn": "multissl.objectives.msn:MSN",
        "distill": "multissl.objectives.distill:Distill",
        "mae": "multissl.objectives.mae:MAE",
        "cav_mae": "multissl.objectives.cav_mae:CAVMAE",
        "ijepa": "multissl.objectives.ijepa:IJEPA",
        "data2vec": "multissl.objectives.data2vec:Data2Vec",
        "mlm": "multissl.objectives.language:MLM",
        "next_token": "multissl.objectives.language:NextToken",
        "infilling": "multissl.objectives.infilling:Infilling",
        "vime": "multissl.objectives.vime:VIME",
        "weighted": "multissl.objectives.weighted:Weighted",
    },
    "evaluators": {
        "knn": "multissl.evaluators.knn:KNN",
        "linear_probe": "multissl.evaluators.linear_probe:LinearProbe",
        "linear_grid": "multissl.evaluators.linear_grid:LinearGrid",
        "logistic_regression": "multissl.evaluators.logistic_regression:LogisticRegression",
        "attentive_probe": "multissl.evaluators.probes.attentive_probe:AttentiveProbe",
        "mlp_probe": "multissl.evaluators.probes.mlp_probe:MLPProbe",
        "weighted_layers": "multissl.evaluators.probes.weighted_layers:WeightedLayers",
        "layer_probe": "multissl.evaluators.layer_probe:LayerProbe",
        "fine_tune": "multissl.evaluators.fine_tune:FineTune",
        "few_shot": "multissl.evaluators.few_shot:FewShot",
        "k_means": "multissl.evaluators.k_means:KMeans",
        "class_retrieval": "multissl.evaluators.class_retrieval:ClassRetrieval",
        "corruptions": "multissl.evaluators.corruptions:Corruptions",
        "group_gaps": "multissl.evaluators.group_gaps:GroupGaps",
        "label_free": "multissl.evaluators.label_free:LabelFree",
        "state_probe": "multissl.evaluators.state_probe:StateProbe",
        "collapse": "multissl.evaluators.collapse:Collapse",
        "drift": "multissl.evaluators.drift:Drift",
        "patches": "multissl.evaluators.patches:Patches",
        "few_labels": "multissl.evaluators.few_labels:FewLabels",
        "retrieval": "multissl.evaluators.retrieval:Retrieval",
        "zero_shot": "multissl.evaluators.zero_shot:ZeroShot",
        "masked_word": "multissl.evaluators.hidden_text:MaskedWord",
        "bits_per_character": "multissl.evaluators.hidden_text:BitsPerCharacter",
        "linear_segmentation": "multissl.evaluators.dense.linear_segmentation:LinearSegmentation",
        "linear_depth": "multissl.evaluators.dense.linear_depth:LinearDepth",
        "video_propagation": "multissl.evaluators.dense.video_propagation:VideoPropagation",
        "attention_jaccard": "multissl.evaluators.dense.attention_jaccard:AttentionJaccard",
        "patch_knn": "multissl.evaluators.dense.patch_knn:PatchKNN",
        "recording_probe": "multissl.evaluators.recording_probe:RecordingProbe",
    },
    "layers": {
        "mlp_head": "multissl.layers.heads:MLPHead",
        "unit_head": "multissl.layers.heads:UnitHead",
        "prototype_head": "multissl.layers.heads:PrototypeHead",
        "teacher": "multissl.layers.teacher:Teacher",
        "gram_anchor": "multissl.layers.gram:GramAnchor",
        "frozen_teacher": "multissl.layers.frozen:FrozenTeacher",
        "prototype_teacher": "multissl.layers.frozen:PrototypeTeacher",
        "decoder": "multissl.layers.decoder:Decoder",
    },
    "kernels": {
        "sdpa": "multissl.layers.kernels.sdpa:SDPA",
        "varlen": "multissl.layers.kernels.varlen:Varlen",
        "xformers": "multissl.layers.kernels.xformers:XFormers",
    },
    "loggers": {
        "tensorboard": "multissl.engine.loggers.tensorboard:TensorBoard",
        "wandb": "multissl.engine.loggers.wandb:WandB",
        "mlflow": "multissl.engine.loggers.mlflow:MLflow",
    },
    "optimizers": {
        "adamw": "multissl.engine.optim.adamw:AdamW",
        "lars": "multissl.engine.optim.lars:LARS",
        "sgd": "multissl.engine.optim.sgd:SGD",
    },
    "exporters": {
        "safetensors": "multissl.exporting.safetensors:Safetensors",
        "hf": "multissl.exporting.huggingface:HuggingFace",
        "timm": "multissl.exporting.timm:Timm",
        "onnx": "multissl.exporting.onnx:ONNX",
        "torch.export": "multissl.exporting.torch_export:TorchExport",
    },
    "layouts": {
        "library": "multissl.weights.layouts.ours:Library",
        "dinov2": "multissl.weights.layouts.dinov2:DINOv2",
        "dinov3": "multissl.weights.layouts.dinov3:DINOv3",
        "ibot": "multissl.weights.layouts.ibot:IBOT",
        "moco_v3": "multissl.weights.layouts.moco_v3:MoCoV3",
        "mae": "multissl.weights.layouts.mae:MAE",
        "ijepa": "multissl.weights.layouts.ijepa:IJEPA",
        "vjepa2": "multissl.weights.layouts.vjepa2:VJEPA2",
        "vjepa": "multissl.weights.layouts.vjepa:VJEPA",
        "dino": "multissl.weights.layouts.dino:DINO",
        "huggingface_dinov2": "multissl.weights.layouts.huggingface_dinov2:HuggingFaceDINOv2",
        "huggingface_dinov3": "multissl.weights.layouts.huggingface_dinov3:HuggingFaceDINOv3",
        "huggingface_vit": "multissl.weights.layouts.huggingface_vit:HuggingFaceViT",
        "huggingface_clip": "multissl.weights.layouts.huggingface_clip:HuggingFaceCLIP",
        "huggingface_siglip": "multissl.weights.layouts.huggingface_siglip:HuggingFaceSigLIP",
        "huggingface_videomae": "multissl.weights.layouts.huggingface_videomae:HuggingFaceVideoMAE",
        "huggingface_vjepa2": "multissl.weights.layouts.huggingface_vjepa2:HuggingFaceVJEPA2",
        "huggingface_data2vec": "multissl.weights.layouts.data2vec_vision:HuggingFaceData2Vec",
        "huggingface_ast": "multissl.weights.layouts.ast:HuggingFaceAST",
        "videomae": "multissl.weights.layouts.huggingface_videomae:VideoMAE",
        "data2vec_vision": "multissl.weights.layouts.data2vec_vision:Data2Vec",
        "ast": "multissl.weights.layouts.ast:AST",
        "openai_clip": "multissl.weights.layouts.open_clip:OpenAICLIP",
        "open_clip": "multissl.weights.layouts.open_clip:OpenCLIP",
        "clip_names": "multissl.weights.layouts.open_clip:CLIPNames",
        "torchvision_vit": "multissl.weights.layouts.torchvision_vit:TorchvisionViT",
        "timm_dinov3": "multissl.weights.layouts.timm_dinov3:TimmDINOv3",
        "timm_dinov2": "multissl.weights.layouts.timm_dinov2:TimmDINOv2",
        "timm_clip": "multissl.weights.layouts.timm_clip:TimmCLIP",
        "timm_siglip": "multissl.weights.layouts.timm_siglip:TimmSigLIP",
        "timm_vit": "multissl.weights.layouts.timm_vit:TimmViT",
        "plain_vit": "multissl.weights.layouts.plain_vit:PlainViT",
        "ours": "multissl.weights.layouts.ours:Ours",
    },
}
RECIPES: dict[str, tuple[str, ...]] = {
    "image": (
        "image.dino",
        "image.distilling",
        "image.cifar",
        "image.cifar_covariance",
        "image.imagenet",
        "image.continuing",
        "image.stages",
    ),
    "audio": ("audio",),
    "tabular": ("tabular",),
    "text": ("text",),
    "video": ("video",),
    "rl": ("rl",),
    "image_text": ("image_text",),
    "audio_video": ("audio_video",),
    "audio_text": ("audio_text",),
    "video_text": ("video_text",),
    "image_audio": ("image_audio",),
    "tabular_image": ("tabular_image",),
    "image_text_audio": ("image_text_audio",),
}
"""Modules of `multissl.configs` by the first part of their recipes' names; a public function is `part/function`."""

EXTRAS = {
    "soundfile": "audio", "torchaudio": "audio", "av": "video", "decord": "video", "transformers": "text",
    "tokenizers": "text", "pandas": "tabular", "pytorch_tabular": "tabular", "gymnasium": "rl", "ale_py": "rl",
    "timm": "timm", "datasets": "hub", "huggingface_hub": "hub", "pyarrow": "parquet", "xformers": "xformers",
    "sklearn": "tabular", "scipy": "tabular", "omegaconf": "tabular", "wandb": "wandb", "mlflow": "mlflow",
    "openpyxl": "tabular", "pillow_heif": "heic", "pydicom": "dicom", "fsspec": "remote", "aiohttp": "remote",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx",
}  # fmt: skip


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"


def names(group: str) -> list[str]:
    """The known names of a group, ours first, then those of installed third parties."""
    return [*GROUPS[group], *(e for e in _entry_points(group) if e not in GROUPS[group])]


def resolve(name: str, group: str | None = None) -> Any:
    """The class behind a short name of `group`, or behind `module:Class`."""
    if ":" in name:
        return import_named(name)
    for each in [group] if group else GROUPS:
        if name in GROUPS[each]:
            return import_named(GROUPS[each][name])
        if name in _entry_points(each):
            return _installed(_entry_points(each)[name])
    known = names(group) if group else [n for g in GROUPS for n in names(g)]
    raise ValueError(f"no {(group or 'component').rstrip('s')} is called {name!r}{suggest(name, known)}")


def resolve_or_warn(name: str, group: str) -> Any | None:
    """Return the class behind a name, or None, with a warning, where an installed package cannot be imported.

    For parts that are asked in turn, such as sources: one that is broken must not hide the next.
    """
    try:
        return resolve(name, group)
    except ImportError as error:
        log.warning("%s is left out of the %s: %s", name, group, error)
        return None


def name_of(cls: type | None) -> str | None:
    """The short name of a class, or None."""
    if cls is None:
        return None
    path = f"{cls.__module__}:{cls.__qualname__}"
    for group, table in GROUPS.items():
        for name, target in table.items():
            if target == path:
                return name
        for name, entry in _entry_points(group).items():
            if entry.value == path:
                return name
    return None


def require(module: str) -> Any:
    """Import an optional package, or say how to install it; a constant of the source, never a name out of data."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        wanted = f"'multissl[{EXTRAS[package]}]'" if package in EXTRAS else package
        raise ImportError(
            f"{module} could not be imported ({error}); install it with: pip install {wanted}"
        ) from error


def recipe_entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Recipes of installed third parties, by name."""
    return _entry_points("recipes")


def installed_recipe(name: str) -> Any:
    """Return the function of a third party's recipe."""
    return _installed(recipe_entry_points()[name])


def loaded(name: str) -> Any | None:
    """Return what `module:name` points at where this process has imported it already, else None."""
    module, _, attribute = name.partition(":")
    value: Any = sys.modules.get(module)
    for part in attribute.split("."):
        # of what is there alone: a module may import more when it is asked
        value = vars(value).get(part) if isinstance(value, ModuleType | type) else None
    return value


def _installed(entry: importlib.metadata.EntryPoint) -> Any:
    """Return what an entry point names. Raises an ImportError that names it and its package, whatever went wrong."""
    try:
        return entry.load()
    except Exception as error:  # it is the code of others, and runs as it is imported
        package = entry.dist.name if entry.dist else "an installed package"
        raise ImportError(
            f"{entry.name!r} of {package} ({entry.group} = {entry.value}) could not be imported: "
            f"{type(error).__name__}: {error}; mend or uninstall that package, or leave {entry.name!r} out"
        ) from error


@functools.cache
def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=f"multissl.{group}")}
