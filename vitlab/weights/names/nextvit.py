"""Names of timm's `nextvit_*`."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^head.fc.", "^head."),
            Rule(".patch_embed.{x:conv|norm}.", ".patch_embed.project.{x}."),
            *pointwise(".mhca.projection", ".mlp.fc{i}"),
        ),
    ),
)
