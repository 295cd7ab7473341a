"""Names of timm's `coatnet_*`; the authors published no code."""

from vitlab.weights.rules import FlatTable, NameMap, Rule, pointwise

MAPS = (
    NameMap(
        source="timm",
        rules=(
            Rule("^head.norm.", "^norm."),
            Rule("^head.pre_logits.fc.", "^head.pre_logits."),
            Rule(".blocks.{i}.conv1_1x1.", ".blocks.{i}.conv1."),
            Rule(".blocks.{i}.conv2_kxk.", ".blocks.{i}.conv2."),
            Rule(".conv3_1x1.", ".conv3."),
            Rule(".rel_pos.relative_position_bias_table$", ".rel_pos_bias$", FlatTable()),
            *pointwise(".blocks.{i}.{x:conv1|conv3}", ".se.fc{i}", ".shortcut.expand", ".attn.{x:qkv|proj}", ".mlp.fc{i}"),
        ),
    ),
)
