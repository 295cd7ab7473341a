"""Names of AFeng-x/SMT's checkpoints, which number stages from 1 in the names of their parts."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="AFeng-x/SMT",
        rules=(
            Rule("^patch_embed1.conv.0.", "^stages.0.stem.conv1."),
            Rule("^patch_embed1.conv.1.", "^stages.0.stem.norm1."),
            Rule("^patch_embed1.conv.3.", "^stages.0.stem.conv2."),
            Rule("^patch_embed{i}.norm.", "^stages.{i-1}.embed_norm."),
            Rule("^patch_embed{i}.proj.", "^stages.{i-1}.proj."),
            Rule("^block{i}.", "^stages.{i-1}.blocks."),
            Rule("^norm{i}.", "^stages.{i-1}.norm."),
            Rule(".local_conv_{i}.", ".local_convs.{i-1}."),
            Rule(".dwconv.dwconv.", ".dwconv."),
            Rule(".gamma_{i}$", ".ls{i}.gamma$"),
            *pointwise(".attn.proj{i}"),
        ),
    ),
)
