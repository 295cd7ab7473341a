"""Names of timm's `efficientvit_m*` and of microsoft/Cream's EfficientViT, where a stage's
down-sampling are its first blocks.
"""

from vitlab.weights.rules import NameMap, Rule, SquareTable, pointwise

STAGES = (  # stages of the authors' EfficientViT, and of SHViT's, which follow them
    Rule("^blocks{s}.0.0.m.", "^stages.{s-1}.downsample.dw1.conv."),
    Rule("^blocks{s}.0.1.m.", "^stages.{s-1}.downsample.ffn1."),
    Rule("^blocks{s}.1.{x:conv1|conv2|conv3|se}.", "^stages.{s-1}.downsample.merge.{x}."),
    Rule("^blocks{s}.2.0.m.", "^stages.{s-1}.downsample.dw2.conv."),
    Rule("^blocks{s}.2.1.m.", "^stages.{s-1}.downsample.ffn2."),
    Rule("^blocks1.{j}.", "^stages.0.blocks.{j}."),
    Rule("^blocks{s}.{j+3}.", "^stages.{s-1}.blocks.{j}."),
    Rule(".c.{x:weight|bias}$", ".conv.{x}$"),
    Rule("^patch_embed.{2i}.", "^patch_embed.convs.{i}."),
)
_BLOCKS = (
    Rule(".bn.", ".norm."),
    Rule("^head.norm.", "^norm."),
    Rule(".blocks.{j}.dw{i}.m.", ".blocks.{j}.dw{i}.conv."),
    Rule(".blocks.{j}.ffn{i}.m.", ".blocks.{j}.ffn{i}."),
    Rule(".mixer.m.attn.", ".mixer."),
    Rule(".mixer.proj.1.", ".mixer.proj."),
    Rule(".attention_biases$", ".attention_biases$", SquareTable(heads_first=True)),  # distances |dy|, |dx|
    *pointwise(".se.fc{i}"),
)
_IGNORED = (r"attention_bias_idxs$", r"\.ab$")  # follow from the window, and from the table
MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^patch_embed.conv{i}.", "^patch_embed.convs.{i-1}."),
            Rule(".downsample.res{i}.0.m.", ".downsample.dw{i}.conv."),
            Rule(".downsample.res{i}.1.m.", ".downsample.ffn{i}."),
            Rule(".downsample.patchmerge.", ".downsample.merge."),
            *_BLOCKS,
            Rule("^head.linear.", "^head."),  # after that of head.bn, so that the norm is read backwards first
        ),
        ignored=_IGNORED,
    ),
    NameMap(source="microsoft/Cream", rules=(Rule("^head.l.", "^head."), *STAGES, *_BLOCKS), ignored=_IGNORED),
)
