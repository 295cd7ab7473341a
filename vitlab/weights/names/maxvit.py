"""Names of timm's `maxvit_*_tf_*`, the port of the authors' checkpoints.

Their bias tables are at [key - query], those here at [query - key].
"""

import numpy as np

from vitlab.weights.rules import Rule

RULES = (
    Rule(r"^head\.norm\.", "norm."),
    Rule(r"^head\.pre_logits\.fc\.", "head.pre_logits."),
    Rule(r"\.conv\.conv(\d)_(1x1|kxk)\.", r".conv.conv\1."),
    Rule(r"\.shortcut\.expand\.", ".expand."),
    Rule(r"\.rel_pos\.relative_position_bias_table$", ".rel_pos_bias", lambda table: np.flip(table, (1, 2))),
)
IGNORED = (r"(height|width)_lookup$",)  # follow from the window
