"""Names of rayleizhu/GLMix's checkpoints; in the Swin layout norms come before the convolutions."""

from vitlab.weights.names.biformer import SWIN_DOWNSAMPLING
from vitlab.weights.rules import NameMap, Rule, pointwise

SOURCE = "rayleizhu/GLMix"
_COMMON = (
    Rule(".pos_conv.", ".pos_conv.proj."),
    Rule(".{x:slot_scale|init_slots}$", ".mixer.{x}$"),
    Rule(".relation_mha.", ".mixer.relation_mha."),
    Rule(".mha_op.", ".mixer."),
    Rule(".in_proj_{x:weight|bias}$", ".qkv.{x}$"),
    Rule(".out_proj.", ".proj."),
    Rule(".feature_conv.0.", ".mixer.local_in."),
    Rule(".feature_conv.1.", ".mixer.local_conv."),
    Rule(".feature_conv.2.", ".mixer.local_out."),
    Rule(".mlp.0.", ".mlp.fc1."),
    Rule(".mlp.1.", ".mlp.dwconv."),
    Rule(".mlp.2.", ".mlp.fc2."),
    Rule(".mlp.3.", ".mlp.fc2."),
    *pointwise(".mixer.local_{x:in|out}", ".mlp.fc{i}"),
)
_AUXILIARY = (r"^aux_head\.",)  # a head on patches, of token labelling, which is used in training alone
MAPS = (
    NameMap(
        source=SOURCE,
        rules=(
            Rule("^downsample_layers.0.1.", "^stages.0.downsample.conv1."),
            Rule("^downsample_layers.0.2.", "^stages.0.downsample.norm1."),
            Rule("^downsample_layers.0.4.", "^stages.0.downsample.conv2."),
            Rule("^downsample_layers.0.5.", "^stages.0.downsample.norm2."),
            Rule("^downsample_layers.{i}.0.", "^stages.{i}.downsample.conv."),
            Rule("^downsample_layers.{i}.1.", "^stages.{i}.downsample.norm."),
            *_COMMON,
        ),
        suits=r"^stages\.0\.downsample\.conv1\.",
        ignored=_AUXILIARY,
    ),
    NameMap(
        source=f"{SOURCE}, Swin layout",
        rules=(
            *SWIN_DOWNSAMPLING,
            *_COMMON,
        ),
        ignored=_AUXILIARY,
    ),
)
