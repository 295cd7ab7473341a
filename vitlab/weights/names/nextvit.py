"""Names of timm's `nextvit_*` and of bytedance/Next-ViT, which counts the blocks of all stages
together.
"""

from vitlab.weights.rules import NameMap, Rule, pointwise

_BLOCKS = (
    Rule(".patch_embed.{x:conv|norm}.", ".patch_embed.project.{x}."),
    *pointwise(".mhca.projection", ".mlp.fc{i}"),
)


def _authors(third: int) -> NameMap:
    """The names of a network with so many blocks in its third stage."""
    return NameMap(
        source="bytedance/Next-ViT",
        rules=(
            Rule(f"^features.{{i+{7 + third}}}.", "^stages.3.blocks.{i}."),
            Rule("^features.{i+7}.", "^stages.2.blocks.{i}."),
            Rule("^features.{i+3}.", "^stages.1.blocks.{i}."),
            Rule("^features.{i}.", "^stages.0.blocks.{i}."),
            Rule(".mlp.conv{i}.", ".mlp.fc{i}."),
            Rule("^proj_head.0.", "^head."),
            *_BLOCKS,
        ),
    )


MAPS = (NameMap(source="timm", rules=(Rule("^head.fc.", "^head."), *_BLOCKS)), *(_authors(third) for third in (10, 20, 30)))
