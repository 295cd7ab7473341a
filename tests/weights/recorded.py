"""The model of the zoo for a recording, found by the recording's file name and metadata."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from tests.weights.recorded_trunks import classes_of, trunk_of
from vitlab.models.registry import list_models, model_config

__all__ = ["NAMES", "classes_of", "model_of"]

SIZES = {
    "xxs": "xxs",
    "xs": "xs",
    "ti": "tiny",
    "t": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "xl": "xlarge",
}
# (pattern of whole file names, name of the model); the first match that is in the zoo counts.
NAMES: tuple[tuple[str, str], ...] = (
    (r"evit_deit_([a-z]+)", r"evit_deit_\1_k07"),
    (r"dynperceiver_(\w+)_t\d+", r"dynperceiver_\1_t128"),
    (r"dynperceiver_(\w+)", r"dynperceiver_\1_t128"),
    (r"spectformer_h_(\w+)", r"spectformerh_\1"),
    (r"(?:stvit|svit)_(\w+)", r"svit_\1"),
    (r"(maxvit_\w+?)_tf", r"\1"),
    (r"hf_swin_(\w+)", r"swin_\1"),
    (r"vmamba_(?:tiny|t)", "vmamba_tiny_s1l8"),
    (r"vmamba_(small|base|s|b)", r"vmamba_\1_s2l15"),
    (r"google_augreg_ti16", "vit_tiny_patch16"),
    (r"google_augreg_([sbl])(16|32)", r"vit_\1_patch\2"),
    (r"(swin_\w+?)_patch4_window\d+", r"\1"),
    (r"(deit_\w+?)_distilled_patch(\d+)", r"\1_distilled_patch\2"),
    (r"(.+)", r"\1"),
)
_CSWIN = {
    "embed_dim": "dim",
    "depth": "depths",
    "num_heads": "num_heads",
    "split_size": "split_sizes",
    "agent_num": "num_agents",
}
# Arguments of the authors' constructors that are fields here under another name; others say what
# the variant has anyway.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "agent_swin": {"embed_dim": "dim", "depths": "depths", "num_heads": "num_heads", "agent_num": "num_agents"},
    "inline_swin": {"embed_dim": "dim", "depths": "depths", "num_heads": "num_heads"},
    "crossformer": {
        "embed_dim": "dim",
        "depths": "depths",
        "num_heads": "num_heads",
        "group_size": "group_sizes",
        "crs_interval": "intervals",
    },
    "agent_cswin": _CSWIN,
    "inline_cswin": _CSWIN,
    "cswin": _CSWIN,
    "litv2": {"embed_dim": "dim", "depths": "depths", "num_heads": "num_heads", "alpha": "alpha", "local_ws": "window_sizes"},
    "spectformerh_": {"token_label": "token_labels"},
    "spectformer_": {"embed_dim": "dim", "depth": "depth"},
    "evit_": {"base_keep_rate": "keep_rate", "fuse_token": "fuse", "drop_loc": "reduce_at"},
    "illama_": {"soft_mask_rate": "soft_mask_rate"},
    "transnext": {"pretrain_size": "pretrain_size"},
    "moh_": {"pretrain_size": "pretrain_size"},
    "sparsifiner_": {
        "embed_dim": "dim",
        "depth": "depth",
        "num_heads": "num_heads",
        "mlp_ratio": "mlp_ratio",
        "attn_keep_rate": "keep_rate",
        "token_keep_rate": "token_keep_rate",
        "reduce_n_factor": "reduce_tokens",
        "reduce_c_factor": "reduce_dim",
        "BASIS_THRESHOLD": "basis_threshold",
        "TOPK": "num_coefficients",
        "TOKEN_PRUNING_LOC": "prune_at",
    },
    "vim_": {"embed_dim": "dim", "depth": "depth", "d_state": "state_dim"},
    "vmamba_": {"dims": "dim", "depths": "depths", "ssm_ratio": "ratio", "ssm_d_state": "state_dim", "mlp_ratio": "mlp_ratio"},
    "vrwkv_": {
        "embed_dims": "dim",
        "depth": "depth",
        "post_norm": "post_norm",
        "key_norm": "key_norm",
        "hidden_rate": "hidden_ratio",
    },
    "vit_": {"depth": "depth", "patch_size": "patch_size"},
    "deit_": {"depth": "depth"},
}
# Letters of `attn_type`, one a stage, whose blocks have the mechanism that the family is named
# after.
STAGES = {
    "agent_swin": ("agent_depths", "A"),
    "inline_swin": ("inline_depths", "I"),
    "agent_cswin": ("linear_depths", "A"),
    "inline_cswin": ("linear_depths", "I"),
}


def model_of(stem: str, meta: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns name and fields of the model that a file records.

    Args:
      stem: Name of the file without its ending: a variant in the authors', timm's or our words, and
        what tells recordings of one variant apart, such as "swin_small_patch4_window7_224_rect".
      meta: Metadata of the file; `entrypoint` and `kwargs` count.

    Raises:
      LookupError: No model of the zoo has such a name.
    """
    if trunk := trunk_of(meta):
        return trunk[0], _changed(*trunk)
    name = next((name for text in (stem, meta.get("entrypoint") or "") for name in _candidates(text)), None)
    if name is None:
        raise LookupError(f"no model of the zoo is called {stem} or {meta.get('entrypoint')}")
    cfg = meta.get("cfg") or {}
    return name, _fields(name, stem, {**cfg, **cfg.get("BASIS_COEF", {}), **(meta.get("kwargs") or {})})


def _candidates(text: str):
    """Yields names in the zoo that the text may mean, the most specific first."""
    known, words = set(list_models()), re.sub(r"[^a-z0-9]+", "_", text.lower()).split("_")
    for count in range(len(words), 0, -1):  # trailing words tell size, layout or occasion
        start = "_".join(words[:count])
        for pattern, replacement in NAMES:
            if match := re.fullmatch(pattern, start):
                name = match.expand(replacement)
                yield from (n for n in (name, _spelled(name)) if n in known)


def _spelled(name: str) -> str:
    """Returns the name with a size's letter spelled out, for "biformer_t" or "focalnet_t_srf"."""
    return "_".join(SIZES.get(word, word) for word in name.split("_"))


def _fields(name: str, stem: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    family = next((family for family in FIELDS if name.startswith(family)), None)
    for key, field in FIELDS[family].items() if family else ():
        if key in kwargs:
            fields[field] = tuple(kwargs[key]) if isinstance(kwargs[key], list) else kwargs[key]
    if "num_agents" in fields:  # the authors read them from text, "9-16-49-49"
        fields["num_agents"] = tuple(int(n) for n in fields["num_agents"])
    depths = fields.get("depths", getattr(model_config(name), "depths", ()))
    if family in STAGES and len(kwargs.get("attn_type", "")) == len(depths):
        field, letter = STAGES[family]
        fields[field] = tuple(d if kind == letter else 0 for d, kind in zip(depths, kwargs["attn_type"], strict=True))
    if name.startswith("dynperceiver_") and (latents := re.search(r"_t(\d+)", stem)):
        fields["num_latents"] = int(latents[1])
    if "depth_factor" in kwargs:
        fields["depths"] = tuple(layers * factor for layers, factor in zip((3, 3, 9, 3), kwargs["depth_factor"], strict=True))
    if name.startswith("terminator_"):
        fields |= _terminator(kwargs.get("cfg", {}))
    if name.startswith("swin_") and (window := re.search(r"window(\d+)", stem)):
        fields["window_size"] = int(window[1])
    if kwargs.get("global_pool") == "avg" or re.search(r"_(avg|gap)(_|$)", stem):
        fields |= {"pool": "mean", "class_token": True, "pool_norm": "after"}
    return _changed(name, fields)


def _changed(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields whose values are not those of the variant."""
    config = model_config(name)
    return {field: value for field, value in fields.items() if getattr(config, field) != value}


def _terminator(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by the author's config, where it says them."""
    places = {
        "factors": ("net", "block", "bottleneck_factors"),
        "depths": ("kernel_g", "num_layers_list"),
        "slow_depth": ("kernel_l", "num_layers"),
        "hidden": ("kernel_g", "no_hidden"),
        "local_hidden": ("kernel_l", "no_hidden"),
        "channel_hidden": ("kernel_gc", "no_hidden"),
        "interact_hidden": ("kernel_gc_hi", "no_hidden"),
        "kernel_sizes": ("kernel_l", "sizes"),
    }
    fields = {}
    for field, keys in places.items():
        value = functools.reduce(lambda part, key: part.get(key, {}), keys, cfg)
        if value:
            fields[field] = tuple(value) if isinstance(value, list) else value
    return fields
