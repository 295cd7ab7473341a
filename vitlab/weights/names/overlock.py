"""Names of LMMMEng/OverLoCK's checkpoints in their training form; the head on the overview is left out."""

import re

import numpy as np

from vitlab.weights.rules import Rule

_BASE, _FOCUS = r"^(blocks\d\.\d+)", r"^(sub_blocks\d\.\d+)"


def _stem(match: re.Match[str]) -> str:
    """Convolution, norm and GELU by turns."""
    return f"base.0.embed.{int(match[1]) // 3}.{('conv', 'norm')[int(match[1]) % 3]}."


RULES = (
    Rule(r"^patch_embed1\.(\d+)\.", _stem),
    Rule(r"^patch_embed([234])\.(\d)\.", lambda m: f"base.{int(m[1]) - 1}.embed.0.{('conv', 'norm')[int(m[2])]}."),
    Rule(r"^patch_embedx\.([xh])_proj\.0\.", r"\1_down.conv."),
    Rule(r"^patch_embedx\.([xh])_proj\.1\.", r"\1_down.norm."),
    Rule(r"^high_level_proj\.", "context_proj."),
    Rule(r"^head\.0\.", "proj.conv."),
    Rule(r"^head\.1\.", "proj.norm."),
    Rule(r"^head\.4\.", "head."),
    Rule(_BASE + r"\.dwconv\.", r"\1.pos.proj."),
    Rule(_BASE + r"\.proj\.0\.", r"\1.norm."),
    Rule(_BASE + r"\.proj\.1\.", r"\1.conv."),
    Rule(_BASE + r"\.proj\.2\.", r"\1.conv_norm."),
    Rule(_BASE + r"\.proj\.3\.", r"\1.se."),
    Rule(_BASE + r"\.proj\.(\d)\.", lambda m: f"{m[1]}.mlp.{int(m[2]) - 4}."),
    Rule(_FOCUS + r"\.dwconv(\d)\.", r"\1.pos\2.proj."),
    Rule(_FOCUS + r"\.fusion\.0\.", r"\1.fusion.conv."),
    Rule(_FOCUS + r"\.fusion\.1\.", r"\1.fusion.norm."),
    Rule(_FOCUS + r"\.fusion\.3\.", r"\1.fusion.fc."),
    Rule(_FOCUS + r"\.fusion\.4\.", r"\1.fusion.grn."),
    Rule(_FOCUS + r"\.weight_query\.(\d)\.", lambda m: f"{m[1]}.mixer.query.{('conv', 'norm')[int(m[2])]}."),
    Rule(_FOCUS + r"\.weight_key\.(\d)\.", lambda m: f"{m[1]}.mixer.key.{('conv', 'norm')[int(m[2]) - 1]}."),
    Rule(_FOCUS + r"\.weight_proj\.", r"\1.mixer.taps."),
    Rule(_FOCUS + r"\.rpb1$", r"\1.mixer.small_bias"),
    Rule(_FOCUS + r"\.rpb2$", r"\1.mixer.large_bias"),
    Rule(_FOCUS + r"\.dyconv_proj\.(\d)\.", lambda m: f"{m[1]}.mixer.proj.{('conv', 'norm')[int(m[2])]}."),
    Rule(_FOCUS + r"\.lepe\.0\.", r"\1.lepe."),
    Rule(_FOCUS + r"\.lepe\.1\.", r"\1.lepe_norm."),
    Rule(_FOCUS + r"\.se_layer\.", r"\1.se."),
    Rule(_FOCUS + r"\.gate\.(\d)\.", lambda m: f"{m[1]}.gate.{('conv', 'norm')[int(m[2])]}."),
    Rule(_FOCUS + r"\.proj\.0\.", r"\1.proj_norm."),
    Rule(_FOCUS + r"\.proj\.1\.", r"\1.proj."),
    Rule(r"\.lk_origin\.", ".origin.conv."),
    Rule(r"\.origin_bn\.", ".origin.norm."),
    Rule(r"\.dil_conv_(k\d_\d)\.", r".branches.\1.conv."),
    Rule(r"\.dil_bn_(k\d_\d)\.", r".branches.\1.norm."),
    Rule(r"\.se\.proj\.1\.", ".se.fc1."),
    Rule(r"\.se\.proj\.3\.", ".se.fc2."),
    Rule(r"\.mlp\.0\.", ".mlp.fc1."),
    Rule(r"\.mlp\.2\.", ".mlp.conv.proj."),
    Rule(r"\.mlp\.3\.", ".mlp.grn."),
    Rule(r"\.mlp\.4\.", ".mlp.fc2."),
    Rule(r"\.(ls\d?|[xh]_scale)\.weight$", r".\1.gamma"),
    Rule(r"\.(ls\d?|[xh]_scale)\.bias$", r".\1.beta"),
    Rule(r"(\.gamma|\.beta)$", r"\1", np.ravel),
    Rule(r"^blocks(\d)\.", lambda m: f"base.{int(m[1]) - 1}.blocks."),
    Rule(r"^sub_blocks(\d)\.", lambda m: f"focus.{int(m[1]) - 3}."),
)
IGNORED = (r"^aux_head\.",)
