"""Names of timm's `maxvit_*_tf_*`, a port of the authors' checkpoints.

timm indexes bias tables by key - query, this project by query - key.
"""

from vitlab.weights.rules import Flipped, NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^head.norm.", "^norm."),
            Rule("^head.pre_logits.fc.", "^head.pre_logits."),
            Rule(".conv.conv1_1x1.", ".conv.conv1."),
            Rule(".conv.conv2_kxk.", ".conv.conv2."),
            Rule(".conv.conv3_1x1.", ".conv.conv3."),
            Rule(".shortcut.expand.", ".expand."),
            Rule(".rel_pos.relative_position_bias_table$", ".rel_pos_bias$", Flipped()),
            *pointwise(".conv.conv1", ".conv.conv3", ".se.fc{i}", ".expand"),
        ),
        ignored=(r"(height|width)_lookup$",),  # these follow from the window
    ),
)
