"""Configs of Hugging Face models, read as data: nothing that a file says runs code or fetches anything.

transformers takes fields of a network, switches of its loaders (`trust_remote_code`, `cache_dir`) and names of code
(`auto_map`, a kernel as the attention) in the same way. A recipe and a model's folder may come from a stranger, so
keywords of loaders are written in our code alone, and of what a file says only declared fields of the network count.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from multissl.encoders.timm import check_options
from multissl.registry import require, suggest

WHERE = "encoders.config"
"""The option that the fields are typed under."""


def read_config(model: str) -> Any:
    """Return the config of a folder or hub name; refuse one that brings code of its own."""
    transformers, where = require("transformers"), f"encoders.model={model!r}"
    with _name_option(where):
        data, _ = transformers.PreTrainedConfig.get_config_dict(model)
    refuse_code(data, where)
    with _name_option(where):
        return transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)


def change_config(config: Any, options: Mapping[str, Any]) -> None:
    """Set fields of a config that was read, those of nested configs as well."""
    fields = check_fields(config, options)
    with _name_option(WHERE):
        _set(config, fields)


def describe_config(options: Mapping[str, Any], fitting: Mapping[str, Any]) -> Any:
    """Return a new config of `model_type`: the options, and of what fits the stream the fields that it has."""
    transformers = require("transformers")
    kind, options = str(options["model_type"]), {n: v for n, v in options.items() if n != "model_type"}
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{WHERE}.model_type={kind!r}{suggest(kind, transformers.CONFIG_MAPPING)}")
    with _name_option(WHERE):
        fresh = transformers.AutoConfig.for_model(kind)
    names = list_fields(fresh)
    fields = {names[name]: value for name, value in fitting.items() if name in names}
    fields |= check_fields(fresh, options)
    with _name_option(WHERE):
        return transformers.AutoConfig.for_model(kind, **fields)


def list_fields(config: Any) -> dict[str, str]:
    """Return the fields of the network that a config declares or derives from them, by every name they go by.

    What all configs share stays out: labels, the form of the output, where it was read from.
    """
    shared = inspect.signature(require("transformers").PreTrainedConfig).parameters
    declared = inspect.signature(type(config)).parameters.values()
    public = {*vars(config), *(p.name for p in declared if p.kind is not p.VAR_KEYWORD)} - set(shared)
    own = {name for name in public if not name.startswith("_")}
    aliases = {alias: name for alias, name in config.attribute_map.items() if name in own}
    return {name: name for name in own} | aliases


def check_fields(config: Any, options: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """Return the options under the names of the fields they set; refuse what is no field of the network."""
    refuse_code(options, where)
    names, fields = list_fields(config), {}
    for name, value in options.items():
        if name == "model_type":
            if value != config.model_type:
                raise ValueError(
                    f"{where}.model_type={value!r}: the model is a {config.model_type!r}; leave model_type out, or "
                    "name another model"
                )
            continue
        if name not in names:
            raise ValueError(f"{where} has no field {name!r}{suggest(name, names)}")
        field = names[name]
        if isinstance(part := getattr(config, field), require("transformers").PreTrainedConfig):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}.{name}={value!r}: want a mapping of its fields")
            value = {"model_type": part.model_type, **check_fields(part, value, f"{where}.{name}")}
        fields[field] = value
    return fields


def _set(config: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(part := getattr(config, name), require("transformers").PreTrainedConfig):
            _set(part, {n: v for n, v in value.items() if n != "model_type"})
        else:
            setattr(config, name, value)


def refuse_code(data: Any, where: str) -> None:
    """Refuse, at any depth of a config's values, what leads to code, other files or weights that cannot learn."""
    if isinstance(data, list):
        for value in data:
            refuse_code(value, where)
    if not isinstance(data, Mapping):
        return
    for name, value in data.items():
        if name == "auto_map" and value:
            raise ValueError(
                f"{where} brings code of its own (auto_map), which is not run: take a model that transformers itself "
                "holds, or build this one in a package of your own, with the encoder module and its factory"
            )
        if name == "quantization_config" and value:
            raise ValueError(
                f"{where} describes quantized weights, which cannot be trained: give full precision"
            )
        if name in ("architecture", "backbone") and isinstance(value, str) and re.search(r"[/\\:]", value):
            raise ValueError(
                f"{where} names another model, {name}={value!r}, which is not fetched: name one of timm.list_models()"
            )
        if name == "model_args" and isinstance(value, Mapping):  # what transformers hands to timm
            check_options(value, f"{where}: model_args")
        refuse_code(value, where)


@contextmanager
def _name_option(where: str) -> Iterator[None]:
    """Turn what transformers raises about a config into one line that names the option."""
    invalid = require("huggingface_hub.errors").StrictDataclassError  # of a field's value, no ValueError
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, invalid) as error:
        line = " ".join(str(error).partition("\n\n")[0].split())
        raise ValueError(f"{where}: {line}") from None


COMPUTE = (
    "model_type", "hidden_act", "layer_norm_eps", "norm_eps", "num_attention_heads", "rope_theta", "feat_extract_norm",
    "do_stable_layer_norm", "position_embedding_type", "local_attention", "global_attn_every_n_layers",
    "use_swiglu_ffn", "use_gated_mlp", "use_mean_pooling", "pad_token_id",
)  # fmt: skip
"""Fields of a config that say how a network computes, which its tensors do not tell."""
MAY_LACK = ("pooler.", "mask_token", "masked_spec_embed")
"""How the rest of names begins that files may lack: the network keeps its own."""


def read_state(net: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors under a network's own names, of any of transformers' names: in memory, on disk, with heads.

    A config beside them has to compute as the network does. What transformers itself does not know is left out where it
    is of a head, and refused by name where it is of the network.
    """
    own = net.state_dict()
    for field in COMPUTE:
        mine = getattr(net.config, field, None)
        if field in config and mine is not None and config[field] != mine:
            raise ValueError(
                f"the config of these weights says {field}={config[field]!r}, this encoder has {mine!r}: give "
                f"{WHERE}.{field}, or name the folder in encoders.model"
            )
    if state.keys() == own.keys():
        return dict(state)
    logging: Any = require("transformers.utils.logging")
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        loaded, report = type(net).from_pretrained(
            None, config=net.config, state_dict=dict(state), output_loading_info=True, trust_remote_code=False
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"these weights do not fit the encoder ({' '.join(str(error).split())[:300]})"
        ) from None
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
    rooms = {name.partition(".")[0] for name in own}
    prefix = f"{net.base_model_prefix}."
    stray = [n for n in report["unexpected_keys"] if n.removeprefix(prefix).partition(".")[0] in rooms]
    lacking = [n for n in report["missing_keys"] if not any(part in n for part in MAY_LACK)]
    if stray or lacking:
        words = [*(f"missing {n}" for n in sorted(lacking)), *(f"unknown {n}" for n in sorted(stray))]
        more = f", and {len(words) - 12} more" if len(words) > 12 else ""
        raise ValueError(f"these weights do not fit the encoder: {', '.join(words[:12])}{more}")
    kept = {n: own[n] if n in report["missing_keys"] else t for n, t in loaded.state_dict().items()}
    return {n: t.to(own[n].dtype) for n, t in kept.items()}
