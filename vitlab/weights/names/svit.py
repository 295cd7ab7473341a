"""Names of hhb072/STViT's checkpoints, whose down-sampling ends the stage before."""

from vitlab.weights.rules import NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="hhb072/STViT",
        rules=(
            Rule("^patch_embed.proj.{3i}.", "^patch_embed.convs.{i}."),  # convolution, GELU and batch norm by turns
            Rule("^patch_embed.proj.{3i+2}.", "^patch_embed.norms.{i}."),
            Rule("^layers.{i}.downsample.proj.1.", "^layers.{i+1}.norm."),
            Rule("^layers.{i}.downsample.proj.0.", "^layers.{i+1}.downsample."),
            Rule(".pos_embed.conv.", ".pos_embed.proj."),
            Rule(".norm1.norm.", ".norm1."),
            Rule(".mlp2.", ".mlp."),
            Rule(".mlp.conv.conv.", ".mlp.conv.proj."),
            Rule(".gamma_{i}$", ".ls{i}.gamma$"),
            *pointwise(".stoken_refine.{x:qkv|proj}", ".mlp.fc{i}", "^proj"),
        ),
        ignored=(r"fold\.weights$",),  # fixed one-hot kernels
    ),
)
