"""Names of timm's `halonet26t` and `halonet50ts`."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^stem.conv{i}.", "^stem.convs.{i-1}."),
            Rule("^stages.{i}.{j}.", "^stages.{i}.blocks.{j}."),
            Rule(".bn.", ".norm."),
            Rule(".self_attn.pos_embed.{x:height|width}_rel$", ".self_attn.{x}_rel$"),
            Rule("^head.fc.", "^head."),
            *pointwise(".self_attn.{x:q|kv}"),
        ),
    ),
)
