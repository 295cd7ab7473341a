"""The model of the zoo that a recording is of, by the name of its file and its metadata."""

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
# A pattern of whole names of files, and the model that it stands for; the first that fits and is in the zoo counts.
NAMES: tuple[tuple[str, str], ...] = (
    (r"spectformer_h_(\w+)", r"spectformerh_\1"),
    (r"(?:stvit|svit)_(\w+)", r"svit_\1"),
    (r"(maxvit_\w+?)_tf", r"\1"),
    (r"hf_swin_(\w+)", r"swin_\1"),
    (r"google_augreg_ti16", "vit_tiny_patch16"),
    (r"google_augreg_([sbl])(16|32)", r"vit_\1_patch\2"),
    (r"(swin_\w+?)_patch4_window\d+", r"\1"),
    (r"(deit_\w+?)_distilled_patch(\d+)", r"\1_distilled_patch\2"),
    (r"(.+)", r"\1"),
)
# Arguments of the authors' constructors that are fields here under another name; others say what the variant has anyway.
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
    "litv2": {"embed_dim": "dim", "depths": "depths", "num_heads": "num_heads", "alpha": "alpha", "local_ws": "window_sizes"},
    "spectformer_": {"embed_dim": "dim", "depth": "depth"},
    "vit_": {"depth": "depth", "patch_size": "patch_size"},
    "deit_": {"depth": "depth"},
}
# Letters of `attn_type`, one a stage, whose blocks have the mechanism that the family is named after.
STAGES = {"agent_swin": ("agent_depths", "A"), "inline_swin": ("inline_depths", "I")}


def model_of(stem: str, meta: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and fields of the model that a file records.

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
    return name, _fields(name, stem, meta.get("kwargs") or {})


def _candidates(text: str):
    """Names in the zoo that the text may mean, the most specific first."""
    known, words = set(list_models()), re.sub(r"[^a-z0-9]+", "_", text.lower()).split("_")
    for count in range(len(words), 0, -1):  # trailing words say size, layout or occasion
        start = "_".join(words[:count])
        for pattern, replacement in NAMES:
            if match := re.fullmatch(pattern, start):
                name = match.expand(replacement)
                yield from (n for n in (name, _spelled(name)) if n in known)


def _spelled(name: str) -> str:
    """The name with the letter of a size, "biformer_t" or "focalnet_t_srf", spelled out."""
    return "_".join(SIZES.get(word, word) for word in name.split("_"))


def _fields(name: str, stem: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    family = next((family for family in FIELDS if name.startswith(family)), None)
    for key, field in FIELDS[family].items() if family else ():
        if key in kwargs:
            fields[field] = tuple(kwargs[key]) if isinstance(kwargs[key], list) else kwargs[key]
    if family in STAGES and len(kwargs.get("attn_type", "")) == len(fields["depths"]):
        field, letter = STAGES[family]
        fields[field] = tuple(d if kind == letter else 0 for d, kind in zip(fields["depths"], kwargs["attn_type"], strict=True))
    if name.startswith("swin_") and (window := re.search(r"window(\d+)", stem)):
        fields["window_size"] = int(window[1])
    if kwargs.get("global_pool") == "avg" or re.search(r"_(avg|gap)(_|$)", stem):
        fields |= {"pool": "mean", "class_token": True, "pool_norm": "after"}
    return _changed(name, fields)


def _changed(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields whose values are not those of the variant."""
    config = model_config(name)
    return {field: value for field, value in fields.items() if getattr(config, field) != value}
