"""Cuts a whole folder of golden cases to the part that lies in the repository, `tests/golden/cases`.

    uv run python -m tests.golden.select_cases FOLDER

Two things leave a case out. Its licence: only variants computed by code under a licence in `LICENCES` are kept; where
others computed a part of a variant's tensors (`OTHERS`), these tensors are left out. Its size: of variants that are
small together with all their cases every case is kept, of larger ones the smallest set of cases that between them have
every value of the options that the tests branch on (`BRANCHES`). The same folder always gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Entry = dict[str, Any]
"""A family, variant, case or tensor of the manifest."""

CASES = Path(__file__).parent / "cases"
SMALL = 96 * 1024
"""Bytes of tensors up to which a variant is kept with all its cases."""
LARGEST = 1024 * 1024
"""Bytes of a file; a family that needs more gets several files."""

READ = {
    "contrastive": "clip_softmax curl_bilinear dcl dclw infonce_pairs moco_queue moco_v3 nnclr ntxent_memory_bank "
    "ntxent_simclr siglip_sigmoid supcon",
    "dinov2_step": "dinov2_training_steps",
    "distillation": "dino_official dinov2_dino_centering dinov2_dino_sinkhorn dinov2_ibot_masked dinov3_dino_loss "
    "dinov3_gram ibot_official koleo msn sinkhorn swav_loss",
    "distributed": "dist_barlow dist_clip dist_dcl dist_koleo dist_moco_v3 dist_ntxent dist_siglip "
    "dist_sinkhorn_center dist_vicreg",
    "encoders_dinov2": "dino_head dinov2_head dinov2_intermediate_layers dinov2_pos_embed_interpolation dinov2_vit",
    "encoders_hf": "hf_ast hf_clip hf_dinov2 hf_videomae",
    "layouts": "dino_v1 flexi_patch ibot timm_channels timm_positions",
    "masked_modeling": "audiomae_loss audiomae_masking ijepa_model_loss mae_loss mae_model mae_random_masking "
    "simmim_loss sincos_pos_embed videomae_loss vjepa_loss vjepa_model",
    "metrics": "alpha_req knn_weighted rankme retrieval_map",
    "noncontrastive": "barlow_twins data2vec_targets mmcr negative_cosine tico vicreg vicregl wmse_whitening",
    "optim_ema": "ema_and_clip lars",
    "protocols": "alpha_req_wls attention_mask_jaccard attentive_probe attentive_probe_aim attentive_probe_capi "
    "clid clip_zero_shot copy_detection depth_bins dinov2_knn_few dinov3_knn_skip_first dinov3_linear_seg_head "
    "dinov3_schedules dist_sigreg dist_simdinov2 eat_loss few_shot_subset imagenet_c_mce label_propagation "
    "lejepa_minimal lidar linear_probe_input phi_s retrieval_revisited segmentation_miou sigreg_lejepa simdino_mcr "
    "simdinov2_mcr simdinov2_patch visreg",
    "schedules_groups": "dinov2_cosine dinov2_param_groups dinov2_training_schedules peer_schedules",
    "stochastic": "dinov2_augmentation_rates dinov2_block_mask dinov2_collate dinov2_crops ibot_mask ijepa_masks "
    "simmim_mask videomae_tube_mask vjepa_masks",
    "text_audio": "bert_mlm_mask kaldi_fbank spanbert_mask spec_augment t5_lengths t5_noise_mask t5_span_corruption",
}
"""The variants that tests read, by family."""

WHOLE_ALONE = {
    "layouts": "dinov3_official hf_ast hf_bert hf_clip_vision hf_data2vec_vision hf_dinov2 hf_dinov2_registers "
    "hf_dinov3 hf_ijepa hf_modernbert hf_roberta hf_siglip2_vision hf_siglip_vision hf_videomae hf_vit "
    "hf_vit_mae_encoder hf_vjepa2 hf_wav2vec2 ijepa_official timm_clip timm_dinov2 timm_dinov3 "
    "timm_siglip timm_vit torchvision_vit vjepa2_official vjepa_official wrapped_dino_teacher "
    "wrapped_hf_bert_old wrapped_hf_clip_full wrapped_hf_dinov2_memory wrapped_hf_dinov3_memory "
    "wrapped_hf_modernbert_mlm wrapped_hf_videomae_pretraining wrapped_hf_vit_memory "
    "wrapped_hf_wav2vec2_published wrapped_mocov3 wrapped_vjepa2_encoder wrapped_vjepa_target",
}
"""Variants that tests read in the whole folder alone: eight megabytes, where `tests/weights` compares most of these
layouts with the libraries themselves."""

LICENCES = {
    "HobbitLong/SupContrast": "BSD-2-Clause",
    "MishaLaskin/curl": "MIT",
    "RobinWu218/SimDINO": "MIT",
    "bytedance/ibot": "Apache-2.0",
    "cwx-worst-one/EAT": "MIT",
    "facebookresearch/barlowtwins": "MIT",
    "facebookresearch/capi": "Apache-2.0",
    "facebookresearch/dino": "Apache-2.0",
    "facebookresearch/dinov2": "Apache-2.0",
    "facebookresearch/fairseq": "MIT",
    "facebookresearch/vicreg": "MIT",
    "galilai-group/stable-pretraining": "MIT",
    "facebookresearch/vjepa2": "MIT",
    "google-research/simclr": "Apache-2.0",
    "google-research/text-to-text-transfer-transformer": "Apache-2.0",
    "info-nce-pytorch": "MIT",
    "lightly": "MIT",
    "mlfoundations/open_clip": "MIT",
    "microsoft/SimMIM": "MIT",
    "open_clip_torch": "MIT",
    "pytorch-metric-learning": "MIT",
    "scikit-learn": "BSD-3-Clause",
    "timm": "Apache-2.0",
    "torchaudio": "BSD-2-Clause",
    "transformers": "Apache-2.0",
    "vturrisi/solo-learn": "MIT",
}
"""SPDX identifiers of the sources whose numbers may lie here, at the versions that the manifest names."""
OWN = "own-numpy-reference"
"""The kind of source that is no third party's code."""

OTHERS = {
    "clid": {"SirNader/SSL_representation_assessment": ["out/cl_split"]},
    "depth_bins": {"facebookresearch/dinov3": ["out/gradlog", "out/m_*"]},
    "dist_sinkhorn_center": {"facebookresearch/swav": ["out/q_swav_*"]},
    "koleo": {"facebookresearch/dinov3": ["out/loss_topk", "grad/topk_x"]},
    "lidar": {"NVlabs/RADIO": ["out/lidar_radio"], "arnab39/reptrix": ["out/lidar_reptrix"]},
    "lars": {"facebookresearch/moco-v3": ["out/mocov3_*"]},
    "msn": {"facebookresearch/msn": ["out/ce", "out/rloss", "out/target_probs", "out/loss", "grad/*"]},
    "negative_cosine": {"facebookresearch/simsiam": ["out/simsiam_sym", "grad/simsiam_*"]},
    "peer_schedules": {
        "facebookresearch/ijepa": ["out/ijepa_*"],
        "facebookresearch/mae": ["out/mae_*"],
    },
    "sinkhorn": {"facebookresearch/swav": ["out/q"]},
}
"""Of variants with several sources: what those without a licence in `LICENCES` computed, as role/name."""

BRANCHES: dict[str, Callable[[Entry], tuple[object, ...]]] = {
    "dinov2_intermediate_layers": lambda h: (h["reshape"],),
    "dinov2_pos_embed_interpolation": lambda h: ((h["aa"], h["off"] > 0),),
    "dinov2_training_steps": lambda h: (h["sep"], h["centering"], h["ffn"], h["reg"] > 0, 0 in h["ll"]),
    "hf_clip": lambda h: (h["B"] > 1,),
    "knn_weighted": lambda h: (min(h["ks"]) < 5,),
}
"""What the tests of a large variant branch on, from a case's options; without an entry the smallest case is enough.

One of hf_dinov2 is: `tests/weights/test_loading.py` compares with the library itself, with and without registers and
SwiGLU.
"""


def count_bytes(entry: Entry) -> int:
    """Return the bytes of a tensor from its entry."""
    return prod(entry["shape"]) * getattr(torch, entry["dtype"]).itemsize


def name_key(case: Entry, role: str, name: str) -> str:
    """Return a tensor's name in the file; large ones may be shared by cases."""
    return case["tensors"][role][name].get("key", f"{case['id']}/{role}/{name}")


def list_sizes(cases: Iterable[Entry]) -> dict[str, int]:
    """Return the bytes of all tensors of some cases, a shared one once."""
    return {
        name_key(case, role, name): count_bytes(entry)
        for case in cases
        for role, entries in case["tensors"].items()
        for name, entry in entries.items()
    }


def find_smallest_cover(cases: list[Entry], branches: Callable[[Entry], tuple[object, ...]]) -> list[Entry]:
    """Return the cases of the fewest bytes that have every value of every branch that all cases have."""

    def values(some: Iterable[Entry]) -> set[object]:
        return {pair for case in some for pair in enumerate(branches(case["hyper"]))}

    subsets = (s for count in range(1, len(cases) + 1) for s in combinations(cases, count))
    covers = [s for s in subsets if values(s) == values(cases)]
    return list(min(covers, key=lambda s: sum(list_sizes(s).values())))


def leave_out(case: Entry, patterns: list[str]) -> Entry:
    """Return a case without the tensors that match a pattern, and with a list of what it lacks."""
    lacking = [
        f"{role}/{name}"
        for role, entries in case["tensors"].items()
        for name in entries
        if any(fnmatch(f"{role}/{name}", p) for p in patterns)
    ]
    tensors = {
        role: {name: entry for name, entry in entries.items() if f"{role}/{name}" not in lacking}
        for role, entries in case["tensors"].items()
    }
    return {**case, "tensors": tensors, **({"left_out": lacking} if lacking else {})}


def select(variant: str, entry: Entry, cases: list[Entry]) -> list[Entry]:
    """Return what may and should be kept of a variant's cases; nothing where the licence of a source forbids it."""
    patterns: list[str] = []
    for source in find_unlicensed(entry):
        if source not in OTHERS.get(variant, {}):
            return []
        patterns += OTHERS[variant][source]
    cases = [leave_out(case, patterns) for case in cases]
    if sum(list_sizes(cases).values()) <= SMALL:
        return cases
    return find_smallest_cover(cases, BRANCHES.get(variant, lambda _: ()))


def find_unlicensed(entry: Entry) -> list[str]:
    """Return the sources of a variant that have no licence in `LICENCES`."""
    return [s["name"] for s in entry["source"] if s["kind"] != OWN and s["name"] not in LICENCES]


def write_tensors(tensors: dict[str, Tensor], folder: Path, family: str) -> list[str]:
    """Write a family's tensors into as many files as `LARGEST` asks for; return the names of the files."""
    parts: list[dict[str, Tensor]] = [{}]
    free = LARGEST
    for name, tensor in sorted(tensors.items()):
        needed = tensor.nbytes + len(name) + 128  # with its line in the header
        if needed > free:
            parts.append({})
            free = LARGEST
        parts[-1][name] = tensor
        free -= needed
    names = [f"{family}_{i}" if len(parts) > 1 else family for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / f"{name}.safetensors")
    return [f"{name}.safetensors" for name in names]


def format_json(value: Any, levels: int) -> str:
    """Return JSON with a line for every entry of the outer levels, so that a change shows as the lines it is."""
    if not levels or not isinstance(value, dict | list) or not value:
        return json.dumps(value, separators=(", ", ":"))
    if isinstance(value, list):
        return "[\n" + ",\n".join(format_json(v, levels - 1) for v in value) + "\n]"
    return (
        "{\n" + ",\n".join(f"{json.dumps(k)}:{format_json(v, levels - 1)}" for k, v in value.items()) + "\n}"
    )


def format_notice(manifest: Entry) -> str:
    """Return the text that says where the numbers come from, under which licences, and what is left out."""
    used: dict[tuple[str, str, str], list[str]] = {}
    for family, entry in manifest["families"].items():
        for variant, about in entry["variants"].items():
            for source in about["source"]:
                name, version = source["name"], source.get("version") or source.get("commit")
                if source["kind"] == OWN:
                    row = (
                        "published definitions, written down for these cases",
                        "none",
                        "none: no other's code",
                    )
                elif name in LICENCES:
                    row = (name, version, LICENCES[name])
                else:
                    continue
                used.setdefault(row, []).append(f"{family}/{variant}")
    table = [f"| {' | '.join(row)} | {', '.join(dict.fromkeys(used[row]))} |" for row in sorted(used)]
    absent = [
        f"- {family}/{variant}: {', '.join(sources)}"
        for family, variants in manifest["left_out"].items()
        for variant, sources in variants.items()
    ]
    parts = [
        f"- {variant}, {', '.join(f'`{p}`' for p in patterns)}: {source}"
        for variant, sources in OTHERS.items()
        for source, patterns in sources.items()
    ]
    return NOTICE.format(table="\n".join(table), absent="\n".join(absent), parts="\n".join(parts))


NOTICE = """# Where the golden cases come from

This folder holds numbers: inputs drawn at random, and what code of other projects computed from them on a processor.
No code and no weights of these projects are stored. `manifest.json` names for every variant the function that was run
and how. This file and all others here are written by `tests/golden/select_cases.py`.

| Source | Version or commit | Licence (SPDX) | Variants |
|---|---|---|---|
{table}

## Left out

Their sources are under a licence that forbids commercial use, or under one of their own. Their tests run with the whole
folder, which `MULTISSL_GOLDEN` names, and skip without it:

{absent}

Of variants with several sources only these tensors are left out, and not compared without the whole folder:

{parts}
"""


def main(folder: Path, out: Path) -> None:
    """Write the cut of a whole folder."""
    whole = json.loads((folder / "manifest.json").read_text())
    manifest: Entry = {key: whole[key] for key in ("format", "generated_with")} | {
        "families": {},
        "left_out": {},
    }
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.safetensors"):
        old.unlink()
    for family, names in READ.items():
        entry = whole["families"][family]
        variants, cases = {}, []
        for variant in names.split():
            about = entry["variants"][variant]
            kept = select(variant, about, [c for c in entry["cases"] if c["variant"] == variant])
            cases += kept
            if kept:
                variants[variant] = about
            else:
                manifest["left_out"].setdefault(family, {})[variant] = find_unlicensed(about)
        with safe_open(folder / entry["file"], "pt") as file:
            tensors = {key: file.get_tensor(key) for key in list_sizes(cases)}
        files = write_tensors(tensors, out, family)
        manifest["families"][family] = {"files": files, "variants": variants, "cases": cases}
    manifest["whole_alone"] = {family: names.split() for family, names in WHOLE_ALONE.items()}
    (out / "manifest.json").write_text(format_json(manifest, levels=4) + "\n")
    (out / "NOTICE.md").write_text(format_notice(manifest))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the whole folder, with a manifest.json")
    parser.add_argument("--out", type=Path, default=CASES, help="where the cut goes")
    main(**vars(parser.parse_args()))
