"""Names of qhfan/RALA's checkpoints, whose down-sampling ends the stage before."""

from vitlab.weights.rules import Axes, NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="qhfan/RALA",
        rules=(
            Rule("^patch_embed.proj.{3i}.", "^patch_embed.convs.{i}."),  # convolution, batch norm and GELU by turns
            Rule("^patch_embed.proj.{3i+1}.", "^patch_embed.norms.{i}."),
            Rule("^layers.{i}.downsample.norm.", "^layers.{i+1}.norm."),
            Rule("^layers.{i}.downsample.reduction.", "^layers.{i+1}.downsample."),
            Rule(".norm{i}.norm.", ".norm{i}."),
            Rule(".pos.", ".pos.proj."),
            Rule(".ffn.", ".mlp."),
            Rule(".mlp.dwconv.", ".mlp.conv.proj."),
            Rule(".gamma_{i}$", ".ls{i}.gamma$", Axes("1c11", "c")),
            *pointwise(".attn.{x:qkvo|proj}", ".mlp.fc{i}", "^proj", "^head"),
        ),
        ignored=(r"RoPE\.angle$",),  # constants
    ),
)
