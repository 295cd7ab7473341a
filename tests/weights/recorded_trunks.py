"""The plain trunk of the zoo that a recording of timm, Hugging Face, the authors or Google is
of.
"""

import re
from collections.abc import Mapping
from typing import Any

Found = tuple[str, dict[str, Any]]  # a variant, and fields beside it

_SIZES = "tiny|small|medium|base|large|huge|giant|gigantic|so400m|giantopt|1b|3b|7b|small_plus|huge_plus"
# A pattern of timm's names -> the variant here and fields; the first one that fits the whole name
# counts. A last number is pixels.
TIMM: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (rf"vit_({_SIZES})_patch(\d+)_reg4_dinov2", r"dinov2_\1_reg4_patch\2", {"pos_grid": None}),
    (rf"vit_({_SIZES})_patch(\d+)_dinov2", r"dinov2_\1_patch\2", {"pos_grid": None, "pos_resize": "antialias"}),
    (r"vit_tiny_patch16_dinov3_qkvb", "eupe_tiny_patch16", {"pool": "mean"}),
    (rf"vit_({_SIZES})_patch16_dinov3_qkvb", r"dinov3_\1_patch16", {"pool": "mean"}),
    (rf"vit_({_SIZES})_patch16_dinov3", r"dinov3_\1_patch16", {"pool": "mean", "qkv_bias": False}),
    (rf"vit_({_SIZES})_patch16_lingbot", r"lingbot_\1_patch16", {}),
    (rf"vit_({_SIZES})_patch14_reg1_tipsv2", r"tipsv2_\1_patch14", {"pos_grid": None}),
    (rf"vit_({_SIZES})_patch(\d+)_clip_quickgelu_\d+", r"clip_\1_patch\2", {"head_bias": True}),
    (r"vit_(huge|gigantic|giant)_patch(\d+)_clip_quickgelu_\d+", r"openclip_\1_patch\2", {"head_bias": True, "activation": "quick_gelu"}),
    (rf"vit_({_SIZES})_patch(\d+)_clip_\d+", r"openclip_\1_patch\2", {"head_bias": True}),
    (r"vit_medium_patch16_clip_\d+", "openclip_base_patch16", {"head_bias": True, "dim": 512, "num_heads": 8}),
    (r"vit_medium_patch32_clip_\d+", "openclip_base_patch32", {"head_bias": True, "dim": 512, "num_heads": 8}),
    (r"vit_xsmall_patch16_clip_\d+", "openclip_base_patch16", {"head_bias": True, "dim": 256, "depth": 10, "num_heads": 4}),
    (r"vit_betwixt_patch32_clip_\d+", "openclip_base_patch32", {"head_bias": True, "dim": 640, "num_heads": 10}),
    (r"vit_base_patch16_plus_clip_\d+", "openclip_base_patch16", {"head_bias": True, "dim": 896, "num_heads": 14}),
    (r"vit_base_patch16_gap_\d+", "vit_base_patch16", {"pool": "mean", "num_heads": 16}),
    (r"vit_(medium|betwixt)_patch16_gap_\d+", r"vit_\1", {}),
    (r"vit_huge_patch16_gap_\d+", "ijepa_huge_patch16_448", {}),
    (rf"vit_({_SIZES})_patch(\d+)_gap_\d+", r"ijepa_\1_patch\2", {}),
    (rf"aimv2_({_SIZES})_patch14_\d+", r"aimv2_\1_patch14", {}),
    (r"eva02_(base|large)_patch(\d+)_clip_\d+", r"eva02_clip_\1_patch\2", {}),
    (rf"eva02_({_SIZES})_patch14_\d+", r"eva02_\1_patch14", {}),
    (r"(beit|beitv2)_(base|large)_patch16_\d+", r"\1_\2_patch16", {}),
    (rf"deit3_({_SIZES})_patch(\d+)_\d+", r"deit3_\1_patch\2", {}),
    (r"vit_pe_core_(tiny|small)_patch16_\d+", r"pe_core_\1_patch16_384", {"head_bias": True}),
    (r"vit_pe_core_base_patch16_\d+", "pe_core_base_patch16", {"head_bias": True}),
    (r"vit_pe_core_large_patch14_\d+", "pe_core_large_patch14_336", {"head_bias": True}),
    (r"vit_pe_core_gigantic_patch14_\d+", "pe_core_gigantic_patch14_448", {"head_bias": True}),
)
# Networks of timm alone, of no variant here.
OTHERS: Mapping[str, Found] = {
    name: ("vit_base_patch16", {"dim": dim, "num_heads": dim // 64, "pool": "mean", "qkv_bias": False, "layer_scale": 1e-6})
    for name, dim in (("vit_medium", 512), ("vit_betwixt", 640))
}
_EXACT = {("base", "16"), ("large", "16"), ("so400m", "14")}  # SigLIP's that have the exact GELU in timm, but those of 512 pixels of L


def trunk_of(meta: Mapping[str, Any]) -> Found | None:
    """Variant and fields of a recording by its reference and entry point; None where it is of no
    such trunk.
    """
    reference, entry, kwargs = meta.get("reference", ""), meta.get("entrypoint") or "", meta.get("kwargs") or {}
    if reference.startswith("transformers"):
        return _hugging_face_swin(kwargs) if entry.startswith("Swin") and "2" not in entry else _hugging_face(entry, kwargs)
    if reference.startswith("facebookresearch/"):
        return _facebook(entry, kwargs)
    found = _siglip(entry) or _timm(entry)
    if found is None:
        return None
    return found[0], found[1] | _of_timm(found, kwargs)


def _timm(entry: str) -> Found | None:
    for pattern, variant, fields in TIMM:
        if match := re.fullmatch(pattern, entry):
            name = match.expand(variant)
            base, more = OTHERS.get(name, (name, {}))
            return base, fields | more
    return None


def _siglip(entry: str) -> Found | None:
    match = re.fullmatch(rf"vit_({_SIZES})_patch(\d+)_siglip(_gap)?_(\d+)", entry)
    if not match:
        return None
    size, patch, gap, pixels = match.groups()
    row = {("base", "32"): "base_patch32_256", ("so400m", "14"): "so400m_patch14", ("giantopt", "16"): "giantopt_patch16_256"}
    row |= {("base", "16"): "base_patch16", ("large", "16"): "large_patch16_256", ("so400m", "16"): "so400m_patch16_256"}
    exact = (size, patch) in _EXACT and (size, pixels) != ("large", "512")
    return f"siglip2_{row[size, patch]}", {"activation": "gelu" if exact else "gelu_tanh"} | ({"pool": "mean"} if gap else {})


_DINOV3 = ("dinov3", "eupe", "lingbot")
_KEEP_NORM = _DINOV3  # their norm stays before the mean in timm, too


def _of_timm(found: Found, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for the arguments of timm's constructors."""
    name, fields = found
    out: dict[str, Any] = {"depth": kwargs["depth"]} if "depth" in kwargs else {}
    if kwargs.get("dynamic_img_size") and "img_size" not in kwargs and "pos_grid" in fields:
        out["pos_grid"] = (37, 37)
    pool = kwargs.get("global_pool")
    patches_only = (fields.get("pool") == "mean" and not name.startswith(_DINOV3)) or name.startswith(("aimv2", "ijepa"))
    if pool == "token":
        out |= {"pool": "cls", "pool_norm": "before"}
    elif pool == "avg" and not patches_only:
        keeps = name.startswith(_KEEP_NORM)
        out |= {"pool": "mean"} | ({} if name.startswith("siglip") else {"class_token": True})
        out |= {} if keeps else {"pool_norm": "after"}
    if fields.get("pool") == "mean" and name.startswith(_DINOV3):
        out.setdefault("class_token", True)
    return out


_LETTERS = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "7b": "7b"}


def _facebook(entry: str, kwargs: Mapping[str, Any]) -> Found | None:
    if match := re.fullmatch(r"(dinov[23])_vit(7b|[sblhg])(\d\d)(plus)?(_reg)?", entry):
        family, size, patch, plus, registers = match.groups()
        name = f"{family}_{_LETTERS[size]}{'_plus' * bool(plus)}{'_reg4' * bool(registers)}_patch{patch}"
        return name, {"depth": kwargs["depth"]} if "depth" in kwargs else {}
    return None


# Hugging Face's class -> a variant of any size, and fields that its configuration does not say.
HUGGING_FACE: Mapping[str, Found] = {
    "ViT": ("vit_base_patch16", {}),
    "DeiT": ("deit_base_patch16", {}),
    "Beit": ("beit_base_patch16", {}),
    "IJepa": ("ijepa_huge_patch14", {}),
    "Dinov2": ("dinov2_small_patch14", {"pos_resize": "bicubic"}),
    "Dinov2WithRegisters": ("dinov2_small_reg4_patch14", {}),
    "DINOv3ViT": ("dinov3_small_patch16", {}),
    "CLIPVision": ("clip_base_patch16", {}),
    "Siglip2Vision": ("siglip2_base_patch16", {}),
    "SiglipVision": ("siglip_base_patch16", {}),
    "Siglip": ("siglip_base_patch16", {"pool": "mean"}),
    "Aimv2Vision": ("aimv2_large_patch14", {}),
}
_WORDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "intermediate_size": "mlp_dim",
    "num_register_tokens": "num_registers",
}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def _hugging_face(entry: str, config: Mapping[str, Any]) -> Found | None:
    kind = re.sub(r"(WithProjection|Model|ForImageClassification|WithTeacher|WithoutHead)+", "", entry)
    if kind not in HUGGING_FACE:
        return None
    name, fields = HUGGING_FACE[kind]
    fields = fields | {here: config[there] for there, here in _WORDS.items() if there in config}
    fields["eps"] = config.get("layer_norm_eps", config.get("rms_norm_eps", 1e-6))
    if config.get("hidden_act") in _ACTIVATIONS and not name.startswith("aimv2"):
        fields["activation"] = _ACTIVATIONS[config["hidden_act"]]
    if config.get("use_gated_mlp"):
        fields["mlp"] = "swiglu"
    if config.get("use_swiglu_ffn"):
        hidden = int(config["hidden_size"] * config["mlp_ratio"])
        fields |= {"mlp": "packed_swiglu", "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8}
    if "image_size" in config and name.startswith("dinov2"):
        fields["pos_grid"] = (config["image_size"] // config["patch_size"],) * 2
    if entry.startswith("DeiT") and "Teacher" in entry:
        fields["distilled"] = True
    if kind.startswith("Dinov2") and entry.endswith("ForImageClassification"):
        fields["pool"] = "cls_mean"
    if kind == "Beit":
        fields["pool"] = "mean" if config.get("use_mean_pooling", True) else "cls"
        fields["rel_pos_bias"] = config.get("use_relative_position_bias", True)
    return name, fields


def _hugging_face_swin(config: Mapping[str, Any]) -> Found:
    words = {"embed_dim": "dim", "depths": "depths", "num_heads": "num_heads", "window_size": "window_size"}
    fields = {here: config[there] for there, here in words.items() if there in config}
    return "swin_tiny", {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def classes_of(meta: Mapping[str, Any], shapes: Mapping[str, Any]) -> int:
    """Classes of a recording: its own number, or, as Hugging Face's say none, the rows of its last
    layer.
    """
    heads = ("classifier.weight", "cls_classifier.weight", "visual_projection.weight")
    return meta["num_classes"] or next((shapes[name][0] for name in heads if name in shapes), 0)
