"""Leaf parts: one idea per file, explicit arguments, no config."""

from vitlab.layers.attention import Attention
from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.blocks import Remat, run_blocks
from vitlab.layers.conv import Conv
from vitlab.layers.conv_mlp import ConvMlp
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.drop_path import DropPath, drop_path_rates, stage_drop_path_rates
from vitlab.layers.initial import normal_init
from vitlab.layers.layer_scale import LayerScale
from vitlab.layers.linear import Linear
from vitlab.layers.mlp import Mlp
from vitlab.layers.norm import LayerNorm
from vitlab.layers.patch_embed import PatchEmbed
from vitlab.layers.patch_merging import PatchMerging
from vitlab.layers.pos_conv import PosConv

__all__ = [
    "Attention",
    "BatchNorm",
    "Conv",
    "ConvMlp",
    "ConvNorm",
    "DropPath",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "PosConv",
    "Remat",
    "drop_path_rates",
    "normal_init",
    "run_blocks",
    "stage_drop_path_rates",
]
