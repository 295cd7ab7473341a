"""Token mixers: one published mechanism per file, built from explicit arguments, never a config.

A mixer maps (b, h, w, c) to (b, h, w, c).
"""

from collections.abc import Callable, Mapping

from flax import nnx

from vitlab.config.references import part_of
from vitlab.mixers.agent import AgentAttention
from vitlab.mixers.bi_level_routing import BiLevelRoutingAttention
from vitlab.mixers.bidirectional_mamba import BidirectionalMamba
from vitlab.mixers.cascaded_group import CascadedGroupAttention
from vitlab.mixers.channel_attention import ChannelAttention
from vitlab.mixers.context_mixing import ContextMixing
from vitlab.mixers.cosine_window import CosineWindowAttention
from vitlab.mixers.cross_shaped import CrossShapedAttention
from vitlab.mixers.efficient_attention import EfficientAttention
from vitlab.mixers.focal_modulation import FocalModulation
from vitlab.mixers.gated_conv import GatedConv
from vitlab.mixers.glmix import GLMix
from vitlab.mixers.global_attention import GlobalAttention
from vitlab.mixers.halo import HaloAttention
from vitlab.mixers.hilo import HiLo
from vitlab.mixers.inline import InLineAttention
from vitlab.mixers.large_kernel import LargeKernelAttention
from vitlab.mixers.light_attention import LightAttention
from vitlab.mixers.long_short import LongShortAttention
from vitlab.mixers.mamba2 import Mamba2
from vitlab.mixers.multi_axis import MultiAxisAttention
from vitlab.mixers.multi_head_conv import MultiHeadConv
from vitlab.mixers.multi_head_scan import MultiHeadScan
from vitlab.mixers.neighborhood import NeighborhoodAttention
from vitlab.mixers.pooling import Pooling
from vitlab.mixers.rank_augmented_linear import RankAugmentedLinearAttention
from vitlab.mixers.relative_attention import RelativeAttention
from vitlab.mixers.scale_aware_modulation import ScaleAwareModulation
from vitlab.mixers.single_head import SingleHeadAttention
from vitlab.mixers.spatial_reduction import SpatialReductionAttention
from vitlab.mixers.spectral import SpectralGating
from vitlab.mixers.ss2d import SS2D
from vitlab.mixers.super_token import SuperTokenAttention
from vitlab.mixers.vision_rwkv import SpatialMix
from vitlab.mixers.window_attention import WindowAttention

__all__ = ["MIXERS", "mixer_of"]

# Mixers that a config may name. Each is called as (dim, num_heads=..., dtype=..., rngs=...); all
# other arguments of a mixer have defaults.
MIXERS: Mapping[str, Callable[..., nnx.Module]] = {
    "agent": AgentAttention,
    "glmix": GLMix,
    "global": GlobalAttention,
    "bi_level_routing": BiLevelRoutingAttention,
    "cascaded_group": CascadedGroupAttention,
    "channel": ChannelAttention,
    "context_mixing": ContextMixing,
    "focal_modulation": FocalModulation,
    "halo": HaloAttention,
    "hilo": HiLo,
    "inline": InLineAttention,
    "large_kernel": LargeKernelAttention,
    "neighborhood": NeighborhoodAttention,
    "rank_augmented_linear": RankAugmentedLinearAttention,
    "pooling": Pooling,
    "relative": RelativeAttention,
    "scale_aware_modulation": ScaleAwareModulation,
    "single_head": SingleHeadAttention,
    "spectral": SpectralGating,
    "ss2d": SS2D,
    "super_token": SuperTokenAttention,
    "cross_shaped": CrossShapedAttention,
    "spatial_reduction": SpatialReductionAttention,
    "cosine_window": CosineWindowAttention,
    "efficient": EfficientAttention,
    "gated_conv": GatedConv,
    "light": LightAttention,
    "long_short": LongShortAttention,
    "mamba2": Mamba2,
    "multi_axis": MultiAxisAttention,
    "multi_head_conv": MultiHeadConv,
    "multi_head_scan": MultiHeadScan,
    "vim": BidirectionalMamba,
    "vision_rwkv": SpatialMix,
    "window": WindowAttention,
}


def mixer_of(name: str) -> Callable[..., nnx.Module]:
    """Returns the mixer of a name: one of `MIXERS`, or the user's own (`vitlab.config.references`).

    Raises:
      ConfigError: No mixer has this name; the message lists similar names.
    """
    return part_of("mixer", name, MIXERS)
