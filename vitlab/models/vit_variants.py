"""The plain trunks that people start from: AugReg, DeiT, DINO, CLIP, SigLIP, MAE, BEiT, EVA-02,
AIMv2, I-JEPA and others.

Rows of `vitlab.models.vit`, as their authors' code has them. A trunk that was published without
classes gives its pooled features; one with a text tower gives the vector that is compared with that
of a text.
"""

from typing import Any

from vitlab.layers.tensor_split import TENSOR_SPLIT
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published
from vitlab.models.vit import ViT, ViTConfig

Fields = dict[str, Any]

# Widths: Ti, S: arXiv:2012.12877 Table 1. B, L, H: arXiv:2010.11929 Table 1. M: arXiv:2204.07118.
# So400m: arXiv:2305.13035.
_TINY: Fields = {"dim": 192, "depth": 12, "num_heads": 3}
_SMALL: Fields = {"dim": 384, "depth": 12, "num_heads": 6}
_MEDIUM: Fields = {"dim": 512, "depth": 12, "num_heads": 8}
_BASE: Fields = {"dim": 768, "depth": 12, "num_heads": 12}
_LARGE: Fields = {"dim": 1024, "depth": 24, "num_heads": 16}
_SO400M: Fields = {"dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304}
_HUGE: Fields = {"dim": 1280, "depth": 32, "num_heads": 16}
_GIANT: Fields = {"dim": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144}  # arXiv:2106.04560 Table 2
_GIANT_1536: Fields = {"dim": 1536, "depth": 40, "num_heads": 24}  # arXiv:2304.07193 Table 17

# Pixels in [-1, 1]: AugReg, BEiT, SigLIP, PE. CLIP's statistics are of its own training images.
_HALF: Fields = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
_CLIP_MEAN: Fields = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711), "crop_fraction": 1.0}
_AUGREG: Fields = {"preprocessing": Preprocessing(**_HALF)}  # arXiv:2106.10270
_WHOLE = Preprocessing(crop_fraction=1.0)

_DEIT: Fields = {"drop_path_rate": 0.1}
_DEIT3: Fields = {"pos_prefix": False, "layer_scale": 1e-4, "preprocessing": _WHOLE}  # arXiv:2204.07118
# arXiv:2304.07193. The table of positions is that of 518 pixels; its authors use it at 224, and
# resize it without antialiasing but in the networks with registers (arXiv:2309.16588), whose class
# position is part of the class token here, as in timm.
_DINOV2: Fields = {
    "patch_size": 14,
    "layer_scale": 1e-5,
    "pos_grid": (37, 37),
    "pos_resize": "bicubic_offset",
    "num_classes": 0,
    "preprocessing": Preprocessing(crop_fraction=224 / 256),
}
_DINOV2_REG: Fields = _DINOV2 | {"num_registers": 4, "pos_prefix": False, "pos_resize": "antialias"}
_SWIGLU_4096: Fields = {"mlp": "packed_swiglu", "mlp_dim": 4096}
# arXiv:2508.10104; keys have no bias (the authors mask it), and the 7B network has none at all.
_DINOV3: Fields = {
    "pos_embed": "none",
    "rope": "dinov3",
    "num_registers": 4,
    "layer_scale": 1e-5,
    "eps": 1e-5,
    "key_bias": False,
    "num_classes": 0,
}
# Its README's transform, in which the whole image becomes a square.
_AT_256: Fields = {"image_size": 256, "preprocessing": Preprocessing(resize="squash", interpolation="bilinear")}
_EUPE: Fields = _DINOV3 | _AT_256  # arXiv:2603.22387: DINOv3's networks
_LINGBOT: Fields = _DINOV3 | _AT_256 | {"image_size": 512}  # arXiv:2607.05247: DINOv3's networks, too
# TIPSv2: DINOv2's networks with one register, pixels in [0, 1].
_TIPS: Fields = _DINOV2_REG | {
    "num_registers": 1,
    "layer_scale": 1.0,
    "pos_grid": (32, 32),
    "image_size": 448,
    "preprocessing": Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0),
}
# arXiv:2103.00020. OpenCLIP (arXiv:2212.07143) has the exact GELU, except in its names that end in
# "quickgelu".
_OPENCLIP: Fields = {"pre_norm": True, "eps": 1e-5, "head_bias": False, "preprocessing": Preprocessing(**_CLIP_MEAN)}
_CLIP: Fields = _OPENCLIP | {"activation": "quick_gelu"}
# arXiv:2303.15343, arXiv:2502.14786; the GELU is big_vision's, by tanh.
_SIGLIP: Fields = {
    "pool": "map",
    "activation": "gelu_tanh",
    "num_classes": 0,
    "preprocessing": Preprocessing(**_HALF, resize="squash"),
}
_MAE: Fields = {"num_classes": 0}  # arXiv:2111.06377, as pretrained
_FC_NORM: Fields = {"pool": "mean", "class_token": True, "pool_norm": "after"}  # mean of the patches, then the norm
# arXiv:2106.08254, arXiv:2208.06366, fine-tuned.
_BEIT: Fields = _FC_NORM | {"pos_embed": "none", "rel_pos_bias": True, "key_bias": False}
_BEIT1: Fields = _BEIT | {"preprocessing": Preprocessing(**_HALF)}
# arXiv:2303.11331; CLIP: arXiv:2303.15389.
_EVA02: Fields = {"patch_size": 14, "rope": "eva02", "key_bias": False, "preprocessing": Preprocessing(**_CLIP_MEAN)}
_EVA02_MIM: Fields = _EVA02 | _FC_NORM
_EVA02_LARGE: Fields = _EVA02_MIM | {"mlp": "swiglu", "mlp_norm": True, "image_size": 448}
_EVA02_CLIP: Fields = _EVA02 | {"mlp": "swiglu", "mlp_norm": True, "attn_norm": True}
_EVA02_CLIP_16: Fields = _EVA02_CLIP | {"patch_size": 16}
# arXiv:2411.14402; heads are 128 wide.
_AIMV2: Fields = {
    "patch_size": 14,
    "pool": "mean",
    "patch_norm": True,
    "norm": "rms",
    "eps": 1e-5,
    "qkv_bias": False,
    "branch_bias": False,
    "mlp": "swiglu",
    "num_classes": 0,
    "preprocessing": Preprocessing(**_CLIP_MEAN),
}
_IJEPA: Fields = {"pool": "mean", "num_classes": 0}  # arXiv:2301.08243; positions are sines and cosines, stored as a table
# arXiv:2504.13181
_PE: Fields = {
    "rope": "pe",
    "pre_norm": True,
    "eps": 1e-5,
    "pool": "map",
    "pool_heads": 8,
    "head_bias": False,
    "preprocessing": Preprocessing(**_HALF, resize="squash", interpolation="bilinear"),  # open_clip, pretrained.py
}
_PE_CLS: Fields = _PE | {"class_token": True}

# Counts are timm 1.0.31's, where not said otherwise; those of CLIP and PE without the zero bias
# that timm gives their projection.
_BY_AUGREG = "timm results-imagenet.csv, augreg_in21k_ft_in1k"
_BY_DEIT = "arXiv:2012.12877 Table 5"
_BY_DEIT3 = "deit README_revenge.md, ImageNet-1k at 224"
_BY_DINOV2 = "dinov2 README.md, linear probe"
_BY_DINOV3 = "timm 1.0.31, entries with qkv bias; accuracy: arXiv:2508.10104"
_BY_TIMM = "timm 1.0.31; no figure"
_BY_OPENCLIP = "open_clip openclip_results.csv, zero-shot"
_BY_SIGLIP2 = "big_vision README_siglip2.md, zero-shot"
_BY_MAE = "mae README.md, fine-tuned"
_BY_CSV = "timm results-imagenet.csv"
_BY_AIMV2 = "ml-aim README.md, frozen trunk at 224"
_ROWS: dict[str, tuple[ViTConfig, Published]] = {
    "vit_tiny_patch16": (ViTConfig(**_TINY, **_AUGREG), Published(params=5_717_416, gmacs=1.254, top1=75.5, source=_BY_AUGREG)),
    "vit_tiny_patch32": (ViTConfig(**_TINY, patch_size=32, **_AUGREG), Published(source="not published")),
    "vit_small_patch16": (ViTConfig(**_SMALL, **_AUGREG), Published(params=22_050_664, gmacs=4.599, top1=81.4, source=_BY_AUGREG)),
    "vit_small_patch32": (ViTConfig(**_SMALL, patch_size=32, **_AUGREG), Published(params_m=22.88, top1=76.0, source=_BY_AUGREG)),
    "vit_base_patch16": (ViTConfig(**_BASE, **_AUGREG), Published(params=86_567_656, gmacs=17.564, top1=84.5, source=_BY_AUGREG)),
    "vit_base_patch32": (ViTConfig(**_BASE, patch_size=32, **_AUGREG), Published(params=88_224_232, top1=80.7, source=_BY_AUGREG)),
    "vit_large_patch16": (ViTConfig(**_LARGE, **_AUGREG), Published(params=304_326_632, gmacs=61.555, top1=85.9, source=_BY_AUGREG)),
    "vit_large_patch32": (ViTConfig(**_LARGE, patch_size=32, **_AUGREG), Published(params=306_535_400, source="torchvision vit_l_32")),
    "deit_tiny_patch16": (ViTConfig(**_TINY, **_DEIT), Published(params=5_717_416, gmacs=1.254, top1=72.2, source=_BY_DEIT)),
    "deit_small_patch16": (ViTConfig(**_SMALL, **_DEIT), Published(params=22_050_664, gmacs=4.599, top1=79.8, source=_BY_DEIT)),
    "deit_base_patch16": (ViTConfig(**_BASE, **_DEIT), Published(params=86_567_656, gmacs=17.564, top1=81.8, source=_BY_DEIT)),
    "deit_tiny_distilled_patch16": (
        ViTConfig(**_TINY, distilled=True, **_DEIT),
        Published(params=5_910_800, gmacs=1.261, top1=74.5, source=_BY_DEIT),
    ),
    "deit_small_distilled_patch16": (
        ViTConfig(**_SMALL, distilled=True, **_DEIT),
        Published(params=22_436_432, gmacs=4.624, top1=81.2, source=_BY_DEIT),
    ),
    "deit_base_distilled_patch16": (ViTConfig(**_BASE, distilled=True, **_DEIT), Published(params_m=87.34, top1=83.4, source=_BY_DEIT)),
    "deit3_small_patch16": (ViTConfig(**_SMALL, **_DEIT3), Published(params=22_059_496, top1=81.4, source=_BY_DEIT3)),
    "deit3_medium_patch16": (ViTConfig(**_MEDIUM, **_DEIT3), Published(params=38_849_512, top1=83.0, source=_BY_DEIT3)),
    "deit3_base_patch16": (ViTConfig(**_BASE, **_DEIT3), Published(params=86_585_320, top1=83.8, source=_BY_DEIT3)),
    "deit3_large_patch16": (ViTConfig(**_LARGE, **_DEIT3), Published(params=304_374_760, top1=84.9, source=_BY_DEIT3)),
    "deit3_huge_patch14": (ViTConfig(**_HUGE, patch_size=14, **_DEIT3), Published(params=632_126_440, top1=85.2, source=_BY_DEIT3)),
    "dinov2_small_patch14": (ViTConfig(**_SMALL, **_DINOV2), Published(params=22_056_192, top1=81.1, source=_BY_DINOV2)),
    "dinov2_base_patch14": (ViTConfig(**_BASE, **_DINOV2), Published(params=86_579_712, top1=84.5, source=_BY_DINOV2)),
    "dinov2_large_patch14": (ViTConfig(**_LARGE, **_DINOV2), Published(params=304_367_616, top1=86.3, source=_BY_DINOV2)),
    "dinov2_giant_patch14": (
        ViTConfig(**_GIANT_1536, **_SWIGLU_4096, **_DINOV2),
        Published(params=1_136_479_232, top1=86.5, source=_BY_DINOV2),
    ),
    "dinov2_small_reg4_patch14": (ViTConfig(**_SMALL, **_DINOV2_REG), Published(params=22_057_344, top1=80.9, source=_BY_DINOV2)),
    "dinov2_base_reg4_patch14": (ViTConfig(**_BASE, **_DINOV2_REG), Published(params=86_582_016, top1=84.6, source=_BY_DINOV2)),
    "dinov2_large_reg4_patch14": (ViTConfig(**_LARGE, **_DINOV2_REG), Published(params=304_370_688, top1=86.7, source=_BY_DINOV2)),
    "dinov2_giant_reg4_patch14": (
        ViTConfig(**_GIANT_1536, **_SWIGLU_4096, **_DINOV2_REG),
        Published(params=1_136_483_840, top1=87.1, source=_BY_DINOV2),
    ),
    "dinov3_small_patch16": (ViTConfig(**_SMALL, **_DINOV3, **_AT_256), Published(params=21_596_160, source=_BY_DINOV3)),
    "dinov3_small_plus_patch16": (
        ViTConfig(**_SMALL, mlp="swiglu", mlp_dim=1536, **_DINOV3, **_AT_256),
        Published(params=28_692_480, source=_BY_DINOV3),
    ),
    "dinov3_base_patch16": (ViTConfig(**_BASE, **_DINOV3, **_AT_256), Published(params=85_659_648, source=_BY_DINOV3)),
    "dinov3_large_patch16": (ViTConfig(**_LARGE, **_DINOV3, **_AT_256), Published(params=303_128_576, source=_BY_DINOV3)),
    "dinov3_huge_plus_patch16": (
        ViTConfig(dim=1280, depth=32, num_heads=20, mlp="swiglu", mlp_dim=5120, **_DINOV3, **_AT_256),
        Published(params=840_591_360, source=_BY_DINOV3),
    ),
    "dinov3_7b_patch16": (
        ViTConfig(dim=4096, depth=40, num_heads=32, mlp="swiglu", mlp_dim=8192, qkv_bias=False, **_DINOV3, **_AT_256),
        Published(params=6_716_030_976, source=_BY_DINOV3),
    ),
    "eupe_tiny_patch16": (ViTConfig(**_TINY, **_EUPE), Published(params=5_489_664, source=_BY_TIMM)),
    "eupe_small_patch16": (ViTConfig(**_SMALL, **_EUPE), Published(params=21_596_160, source=_BY_TIMM)),
    "eupe_base_patch16": (ViTConfig(**_BASE, **_EUPE), Published(params=85_659_648, source=_BY_TIMM)),
    "lingbot_small_patch16": (ViTConfig(**_SMALL, **_LINGBOT), Published(params=21_596_160, source=_BY_TIMM)),
    "lingbot_base_patch16": (ViTConfig(**_BASE, **_LINGBOT), Published(params=85_659_648, source=_BY_TIMM)),
    "lingbot_large_patch16": (ViTConfig(**_LARGE, **_LINGBOT), Published(params=303_128_576, source=_BY_TIMM)),
    "lingbot_giant_patch16": (
        ViTConfig(**_GIANT_1536, mlp="swiglu", mlp_dim=4096, qkv_bias=False, **_LINGBOT),
        Published(params=1_134_473_216, source=_BY_TIMM),
    ),
    "tipsv2_base_patch14": (ViTConfig(**_BASE, **_TIPS), Published(params=86_314_752, source=_BY_TIMM)),
    "tipsv2_large_patch14": (ViTConfig(**_LARGE, **_TIPS), Published(params=304_014_336, source=_BY_TIMM)),
    "tipsv2_so400m_patch14": (ViTConfig(**_SO400M, **_TIPS), Published(params=413_391_600, source=_BY_TIMM)),
    "tipsv2_giant_patch14": (ViTConfig(**_GIANT_1536, **_SWIGLU_4096, **_TIPS), Published(params=1_135_949_312, source=_BY_TIMM)),
    "clip_base_patch32": (
        ViTConfig(**_BASE, patch_size=32, num_classes=512, **_CLIP),
        Published(params=87_849_216, top1=63.3, source=_BY_OPENCLIP),
    ),
    "clip_base_patch16": (ViTConfig(**_BASE, num_classes=512, **_CLIP), Published(params=86_192_640, top1=68.3, source=_BY_OPENCLIP)),
    "clip_large_patch14": (
        ViTConfig(**_LARGE, patch_size=14, num_classes=768, **_CLIP),
        Published(params=303_966_208, top1=75.5, source=_BY_OPENCLIP),
    ),
    "clip_large_patch14_336": (
        ViTConfig(**_LARGE, patch_size=14, image_size=(336, 336), num_classes=768, **_CLIP),
        Published(params=304_293_888, top1=76.6, source=_BY_OPENCLIP),
    ),
    "openclip_base_patch32": (
        ViTConfig(**_BASE, patch_size=32, num_classes=512, **_OPENCLIP),
        Published(params=87_849_216, source=_BY_TIMM),
    ),
    "openclip_base_patch16": (
        ViTConfig(**_BASE, num_classes=512, **_OPENCLIP),
        Published(params=86_192_640, top1=70.2, source=f"{_BY_OPENCLIP}, laion2b"),
    ),
    "openclip_large_patch14": (
        ViTConfig(**_LARGE, patch_size=14, num_classes=768, **_OPENCLIP),
        Published(params=303_966_208, top1=75.3, source=f"{_BY_OPENCLIP}, laion2b"),
    ),
    "openclip_huge_patch14": (
        ViTConfig(**_HUGE, patch_size=14, num_classes=1024, **_OPENCLIP),
        Published(params=632_076_800, source=_BY_TIMM),
    ),
    "openclip_giant_patch14": (
        ViTConfig(**_GIANT, patch_size=14, num_classes=1024, **_OPENCLIP),
        Published(params=1_012_645_632, source=_BY_TIMM),
    ),
    "openclip_gigantic_patch14": (
        ViTConfig(dim=1664, depth=48, num_heads=16, mlp_dim=8192, patch_size=14, num_classes=1280, **_OPENCLIP),
        Published(params=1_844_907_264, source=_BY_TIMM),
    ),
    "siglip_base_patch16": (ViTConfig(**_BASE, **_SIGLIP), Published(params=92_884_224, top1=76.0, source=_BY_OPENCLIP)),
    "siglip_base_patch16_256": (
        ViTConfig(**_BASE, image_size=(256, 256), **_SIGLIP),
        Published(params=92_930_304, top1=76.5, source=_BY_OPENCLIP),
    ),
    "siglip_base_patch16_384": (ViTConfig(**_BASE, image_size=(384, 384), **_SIGLIP), Published(params=93_176_064, source=_BY_TIMM)),
    "siglip_base_patch16_512": (ViTConfig(**_BASE, image_size=(512, 512), **_SIGLIP), Published(params=93_520_128, source=_BY_TIMM)),
    "siglip_large_patch16_256": (
        ViTConfig(**_LARGE, image_size=(256, 256), **_SIGLIP),
        Published(params=315_956_224, top1=80.5, source=_BY_OPENCLIP),
    ),
    "siglip_large_patch16_384": (ViTConfig(**_LARGE, image_size=(384, 384), **_SIGLIP), Published(params=316_283_904, source=_BY_TIMM)),
    "siglip_so400m_patch14": (
        ViTConfig(**_SO400M, patch_size=14, **_SIGLIP),
        Published(params=427_680_704, top1=82.0, source=_BY_OPENCLIP),
    ),
    "siglip_so400m_patch14_378": (  # its authors' 384 pixels, of which their embedding leaves out what is no whole patch
        ViTConfig(**_SO400M, patch_size=14, image_size=(378, 378), **_SIGLIP),
        Published(params=428_225_600, top1=83.1, source=_BY_OPENCLIP),
    ),
    "siglip2_base_patch32_256": (
        ViTConfig(**_BASE, patch_size=32, image_size=(256, 256), **_SIGLIP),
        Published(params=94_552_320, source=_BY_TIMM),
    ),
    "siglip2_base_patch16": (ViTConfig(**_BASE, **_SIGLIP), Published(params=92_884_224, top1=78.2, source=_BY_SIGLIP2)),
    "siglip2_base_patch16_256": (
        ViTConfig(**_BASE, image_size=(256, 256), **_SIGLIP),
        Published(params=92_930_304, top1=79.1, source=_BY_SIGLIP2),
    ),
    "siglip2_base_patch16_384": (ViTConfig(**_BASE, image_size=(384, 384), **_SIGLIP), Published(params=93_176_064, source=_BY_TIMM)),
    "siglip2_base_patch16_512": (ViTConfig(**_BASE, image_size=(512, 512), **_SIGLIP), Published(params=93_520_128, source=_BY_TIMM)),
    "siglip2_large_patch16_256": (
        ViTConfig(**_LARGE, image_size=(256, 256), **_SIGLIP),
        Published(params=315_956_224, top1=82.5, source=_BY_SIGLIP2),
    ),
    "siglip2_large_patch16_384": (ViTConfig(**_LARGE, image_size=(384, 384), **_SIGLIP), Published(params=316_283_904, source=_BY_TIMM)),
    "siglip2_large_patch16_512": (ViTConfig(**_LARGE, image_size=(512, 512), **_SIGLIP), Published(params=316_742_656, source=_BY_TIMM)),
    "siglip2_so400m_patch14": (
        ViTConfig(**_SO400M, patch_size=14, **_SIGLIP),
        Published(params=427_680_704, top1=83.2, source=_BY_SIGLIP2),
    ),
    "siglip2_so400m_patch14_378": (
        ViTConfig(**_SO400M, patch_size=14, image_size=(378, 378), **_SIGLIP),
        Published(params=428_225_600, source=_BY_TIMM),
    ),
    "siglip2_so400m_patch16_256": (ViTConfig(**_SO400M, image_size=(256, 256), **_SIGLIP), Published(params=427_888_064, source=_BY_TIMM)),
    "siglip2_so400m_patch16_384": (ViTConfig(**_SO400M, image_size=(384, 384), **_SIGLIP), Published(params=428_256_704, source=_BY_TIMM)),
    "siglip2_so400m_patch16_512": (ViTConfig(**_SO400M, image_size=(512, 512), **_SIGLIP), Published(params=428_772_800, source=_BY_TIMM)),
    "siglip2_giantopt_patch16_256": (
        ViTConfig(dim=1536, depth=40, num_heads=16, image_size=(256, 256), **_SIGLIP),
        Published(params=1_163_168_256, top1=84.5, source=_BY_SIGLIP2),
    ),
    "siglip2_giantopt_patch16_384": (
        ViTConfig(dim=1536, depth=40, num_heads=16, image_size=(384, 384), **_SIGLIP),
        Published(params=1_163_659_776, source=_BY_TIMM),
    ),
    "mae_base_patch16": (ViTConfig(**_BASE, **_MAE), Published(params=85_798_656, source="as vit_base_patch16 without a head")),
    "mae_large_patch16": (ViTConfig(**_LARGE, **_MAE), Published(params=303_301_632, source="as vit_large_patch16 without a head")),
    "mae_huge_patch14": (
        ViTConfig(**_HUGE, patch_size=14, **_MAE),
        Published(params=630_764_800, source="as vit_huge_patch14 without a head"),
    ),
    "mae_base_patch16_in1k": (ViTConfig(**_BASE, **_FC_NORM), Published(params=86_567_656, top1=83.6, source=_BY_MAE)),
    "mae_large_patch16_in1k": (ViTConfig(**_LARGE, **_FC_NORM), Published(params=304_326_632, top1=85.9, source=_BY_MAE)),
    "mae_huge_patch14_in1k": (
        ViTConfig(**_HUGE, patch_size=14, **_FC_NORM),
        Published(params=632_045_800, top1=86.9, source=_BY_MAE),
    ),
    "beit_base_patch16": (
        ViTConfig(**_BASE, layer_scale=0.1, **_BEIT1),
        Published(params=86_530_984, top1=85.24, source=f"{_BY_CSV}, in22k_ft_in22k_in1k"),
    ),
    "beit_large_patch16": (ViTConfig(**_LARGE, layer_scale=1e-5, **_BEIT1), Published(params=304_430_568, source=_BY_TIMM)),
    "beitv2_base_patch16": (
        ViTConfig(**_BASE, layer_scale=0.1, **_BEIT),
        Published(params=86_530_984, top1=85.6, source=f"{_BY_CSV}, in1k_ft_in1k"),
    ),
    "beitv2_large_patch16": (ViTConfig(**_LARGE, layer_scale=1e-5, **_BEIT), Published(params=304_430_568, source=_BY_TIMM)),
    "eva02_tiny_patch14": (
        ViTConfig(**_TINY, mlp="packed_swiglu", mlp_dim=512, image_size=(336, 336), **_EVA02_MIM),
        Published(params=5_756_584, top1=80.65, source=_BY_CSV),
    ),
    "eva02_small_patch14": (
        ViTConfig(**_SMALL, mlp="packed_swiglu", mlp_dim=1024, image_size=(336, 336), **_EVA02_MIM),
        Published(params=22_129_000, top1=85.77, source=_BY_CSV),
    ),
    "eva02_base_patch14": (
        ViTConfig(**_BASE, mlp_dim=2048, **_EVA02_LARGE),
        Published(params=87_117_544, top1=88.26, source=_BY_CSV),
    ),
    "eva02_large_patch14": (
        ViTConfig(**_LARGE, mlp_dim=2730, **_EVA02_LARGE),
        Published(params=305_080_232, top1=89.63, source=_BY_CSV),
    ),
    "eva02_clip_base_patch16": (
        ViTConfig(**_BASE, mlp_dim=2048, num_classes=512, **_EVA02_CLIP_16),
        Published(params=86_263_040, top1=74.7, source=_BY_OPENCLIP),
    ),
    "eva02_clip_large_patch14": (
        ViTConfig(**_LARGE, mlp_dim=2730, num_classes=768, **_EVA02_CLIP),
        Published(params=304_105_152, top1=79.8, source=_BY_OPENCLIP),
    ),
    "eva02_clip_large_patch14_336": (
        ViTConfig(**_LARGE, mlp_dim=2730, image_size=(336, 336), num_classes=768, **_EVA02_CLIP),
        Published(params=304_432_832, top1=80.4, source=_BY_OPENCLIP),
    ),
    "aimv2_large_patch14": (
        ViTConfig(dim=1024, depth=24, num_heads=8, mlp_dim=2816, **_AIMV2),
        Published(params=309_197_824, top1=86.6, source=_BY_AIMV2),
    ),
    "aimv2_huge_patch14": (
        ViTConfig(dim=1536, depth=24, num_heads=12, mlp_dim=4096, **_AIMV2),
        Published(params=680_851_968, top1=87.5, source=_BY_AIMV2),
    ),
    "aimv2_1b_patch14": (
        ViTConfig(dim=2048, depth=24, num_heads=16, mlp_dim=5632, **_AIMV2),
        Published(params=1_234_958_336, top1=88.1, source=_BY_AIMV2),
    ),
    "aimv2_3b_patch14": (
        ViTConfig(dim=3072, depth=24, num_heads=24, mlp_dim=8192, **_AIMV2),
        Published(params=2_720_658_432, top1=88.5, source=_BY_AIMV2),
    ),
    "ijepa_huge_patch14": (ViTConfig(**_HUGE, patch_size=14, **_IJEPA), Published(params=630_762_240, source=_BY_TIMM)),
    "ijepa_huge_patch16_448": (ViTConfig(**_HUGE, image_size=(448, 448), **_IJEPA), Published(params=631_668_480, source=_BY_TIMM)),
    "ijepa_giant_patch16": (ViTConfig(**_GIANT, **_IJEPA), Published(params=1_011_368_576, source=_BY_TIMM)),
    "pe_core_tiny_patch16_384": (
        ViTConfig(**_TINY, image_size=(384, 384), rope_grid=24, num_classes=512, **_PE_CLS),
        Published(params=6_140_544, source=_BY_TIMM),
    ),
    "pe_core_small_patch16_384": (
        ViTConfig(**_SMALL, image_size=(384, 384), rope_grid=24, num_classes=512, **_PE_CLS),
        Published(params=23_782_656, source=_BY_TIMM),
    ),
    "pe_core_base_patch16": (
        ViTConfig(**_BASE, rope_grid=14, num_classes=1024, **_PE_CLS),
        Published(params=93_672_960, source=_BY_TIMM),
    ),
    "pe_core_large_patch14_336": (
        ViTConfig(**_LARGE, patch_size=14, image_size=(336, 336), rope_grid=24, num_classes=1024, **_PE_CLS),
        Published(params=317_151_232, source=_BY_TIMM),
    ),
    "pe_core_gigantic_patch14_448": (  # no class token
        ViTConfig(
            dim=1536, depth=50, num_heads=16, mlp_dim=8960, pool_mlp_dim=6144, patch_size=14, image_size=(448, 448), rope_grid=32,
            num_classes=1280, **_PE,
        ),
        Published(params=1_882_032_640, source=_BY_TIMM),
    ),
}  # fmt: skip
VARIANTS = {name: config for name, (config, _) in _ROWS.items()}
PUBLISHED = {name: published for name, (_, published) in _ROWS.items()}
FAMILY = Family(ViT, VARIANTS, PUBLISHED, TENSOR_SPLIT, layers=lambda m: m.blocks)
