"""Names of timm's `efficientvit_m*`."""

from vitlab.weights.rules import NameMap, Rule, SquareTable, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule(".bn.", ".norm."),
            Rule("^head.norm.", "^norm."),
            Rule("^head.linear.", "^head."),
            Rule("^patch_embed.conv{i}.", "^patch_embed.convs.{i-1}."),
            Rule(".downsample.res{i}.0.m.", ".downsample.dw{i}.conv."),
            Rule(".downsample.res{i}.1.m.", ".downsample.ffn{i}."),
            Rule(".downsample.patchmerge.", ".downsample.merge."),
            Rule(".blocks.{j}.dw{i}.m.", ".blocks.{j}.dw{i}.conv."),
            Rule(".blocks.{j}.ffn{i}.m.", ".blocks.{j}.ffn{i}."),
            Rule(".mixer.m.attn.", ".mixer."),
            Rule(".mixer.proj.1.", ".mixer.proj."),
            Rule(".attention_biases$", ".attention_biases$", SquareTable(heads_first=True)),  # indexed by distances |dy|, |dx|
            *pointwise(".se.fc{i}"),
        ),
        ignored=(r"attention_bias_idxs$",),  # follows from the window
    ),
)
