"""Names of timm's `swin_*` and of microsoft/Swin-Transformer's checkpoints.

timm puts the patch merging at the start of a stage, as here, and wraps the head. The authors put it
at the end of the stage before (their stage 0 has one, timm's has none).
"""

from vitlab.weights.rules import NameMap, Rule, SquareTable

AUTHORS_RULES = (
    Rule("^layers.{i}.downsample.", "^layers.{i+1}.downsample."),
    Rule(".relative_position_bias_table$", ".rel_pos_bias$", SquareTable()),
)
IGNORED = (r"relative_position_index$", r"attn_mask$")  # buffers that follow from the architecture
MAPS = (
    NameMap(source="timm", rules=(Rule("^head.fc.", "^head."), *AUTHORS_RULES[1:]), ignored=IGNORED),
    NameMap(source="microsoft/Swin-Transformer", rules=AUTHORS_RULES, ignored=IGNORED),
)
