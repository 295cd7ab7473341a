"""Names of OliverRensu/SG-Former's checkpoints, whose stages are counted from 1; here two blocks of
the first three are one.
"""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="OliverRensu/SG-Former",
        rules=(
            Rule("^pos_embed$", "^stem.pos_map$"),
            Rule("^patch_embed1.conv.{2i}.", "^stem.convs.{i}."),
            Rule("^patch_embed1.norm.", "^stem.norm."),
            Rule("^patch_embed{i}.", "^stages.{i-1}.downsample."),
            Rule("^block4.{j}.", "^stages.3.blocks.{j}.first."),
            Rule("^block{i}.{2j}.", "^stages.{i-1}.blocks.{j}.first."),
            Rule("^block{i}.{2j+1}.", "^stages.{i-1}.blocks.{j}.guided."),
            Rule("^norm{i}.", "^stages.{i-1}.norm."),
            Rule(".convs.{i}.c.", ".convs.{i}.conv."),
            Rule(".convs.{i}.bn.", ".convs.{i}.norm."),
            Rule(".downsample.conv{i}.c.", ".downsample.conv{i}.conv."),
            Rule(".downsample.conv{i}.bn.", ".downsample.conv{i}.norm."),
            Rule(".dwconv.dwconv.", ".dwconv."),
            Rule(".lepe_{x:linear|conv}.", ".lepe.{x}."),
            Rule(".attn.f{i}.", ".attn.merges.{i-1}."),
        ),
    ),
)
