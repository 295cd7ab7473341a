"""Names of timm's `shvit_s*` and of ysj9909/SHViT."""

from vitlab.weights.names.efficientvit import STAGES
from vitlab.weights.rules import NameMap, Rule, pointwise

_BLOCKS = (
    Rule(".bn.", ".norm."),
    Rule("^head.norm.", "^norm."),
    Rule("^head.l.", "^head."),
    Rule(".blocks.{i}.conv.m.", ".blocks.{i}.conv.conv."),
    Rule(".{x:mixer|ffn}.m.", ".{x}."),
    Rule(".mixer.proj.1.", ".mixer.proj."),
    *pointwise(".se.fc{i}"),
)
MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule(".c.{x:weight|bias}$", ".conv.{x}$"),
            Rule("^patch_embed.{2i}.", "^patch_embed.convs.{i}."),
            Rule(".downsample.{3i}.m.", ".downsample.dw{i+1}.conv."),
            Rule(".downsample.{3i+1}.m.", ".downsample.ffn{i+1}."),
            Rule(".downsample.2.", ".downsample.merge."),
            *_BLOCKS,
        ),
    ),
    NameMap(source="ysj9909/SHViT", rules=(*STAGES, *_BLOCKS)),
)
