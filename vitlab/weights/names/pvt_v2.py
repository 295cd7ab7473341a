"""Names of timm's `pvt_v2_*`, and of whai362/PVT's checkpoints, whose stages are counted from 1."""

from vitlab.weights.rules import NameMap, Rule

MAPS = (
    NameMap(source="timm", rules=(Rule("^patch_embed.", "^stages.0.downsample."),)),
    NameMap(
        source="whai362/PVT",
        rules=(
            Rule("^patch_embed{i}.", "^stages.{i-1}.downsample."),
            Rule("^block{i}.", "^stages.{i-1}.blocks."),
            Rule("^norm{i}.", "^stages.{i-1}.norm."),
            Rule(".dwconv.dwconv.", ".dwconv."),
        ),
    ),
)
