"""Names of timm's `shvit_s*`."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule(".c.{x:weight|bias}$", ".conv.{x}$"),
            Rule(".bn.", ".norm."),
            Rule("^head.norm.", "^norm."),
            Rule("^head.l.", "^head."),
            Rule("^patch_embed.{2i}.", "^patch_embed.convs.{i}."),
            Rule(".downsample.{3i}.m.", ".downsample.dw{i+1}.conv."),
            Rule(".downsample.{3i+1}.m.", ".downsample.ffn{i+1}."),
            Rule(".downsample.2.", ".downsample.merge."),
            Rule(".blocks.{i}.conv.m.", ".blocks.{i}.conv.conv."),
            Rule(".{x:mixer|ffn}.m.", ".{x}."),
            Rule(".mixer.proj.1.", ".mixer.proj."),
            *pointwise(".se.fc{i}"),
        ),
    ),
)
