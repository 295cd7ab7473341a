"""Names of ziplab/LITv2's checkpoints, whose token merging ends the stage before."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(
        source="ziplab/LITv2",
        rules=(
            Rule("^layers.{i}.downsample.", "^layers.{i+1}.downsample."),
            Rule(".dconv.{x:weight|bias}$", ".dconv.conv.{x}$"),
            Rule(".downsample.norm_layer.", ".downsample.norm."),
            Rule(".dwconv.dwconv.", ".dwconv."),
        ),
    ),
)
