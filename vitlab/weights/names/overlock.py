"""Names of LMMMEng/OverLoCK's checkpoints in their training form.

The auxiliary head on the overview is left out.
"""

from vitlab.weights.rules import Axes, NameMap, Rule, pointwise

_BASE, _FOCUS = "^blocks{s}.{b}", "^sub_blocks{s}.{b}"


def _of(block: str, *parts: tuple[str, str]) -> tuple[Rule, ...]:
    """Returns rules for the parts of a block."""
    return tuple(Rule(f"{block}.{foreign}.", f"{block}.{here}.") for foreign, here in parts)


MAPS = (
    NameMap(
        source="LMMMEng/OverLoCK",
        rules=(
            Rule("^patch_embed1.{3i}.", "^base.0.embed.{i}.conv."),  # convolution, norm and GELU by turns
            Rule("^patch_embed1.{3i+1}.", "^base.0.embed.{i}.norm."),
            Rule("^patch_embed{s}.0.", "^base.{s-1}.embed.0.conv."),
            Rule("^patch_embed{s}.1.", "^base.{s-1}.embed.0.norm."),
            Rule("^patch_embedx.{x:x|h}_proj.0.", "^{x}_down.conv."),
            Rule("^patch_embedx.{x:x|h}_proj.1.", "^{x}_down.norm."),
            Rule("^high_level_proj.", "^context_proj."),
            Rule("^head.0.", "^proj.conv."),
            Rule("^head.1.", "^proj.norm."),
            Rule("^head.4.", "^head."),
            *_of(_BASE, ("dwconv", "pos.proj"), ("proj.0", "norm"), ("proj.1", "conv"), ("proj.2", "conv_norm"), ("proj.3", "se")),
            *_of(_BASE, ("proj.{i+4}", "mlp.{i}")),
            *_of(_FOCUS, ("dwconv{i}", "pos{i}.proj")),
            *_of(_FOCUS, ("fusion.0", "fusion.conv"), ("fusion.1", "fusion.norm"), ("fusion.3", "fusion.fc"), ("fusion.4", "fusion.grn")),
            *_of(_FOCUS, ("weight_query.0", "mixer.query.conv"), ("weight_query.1", "mixer.query.norm")),
            *_of(_FOCUS, ("weight_key.1", "mixer.key.conv"), ("weight_key.2", "mixer.key.norm")),
            *_of(_FOCUS, ("weight_proj", "mixer.taps")),
            Rule(f"{_FOCUS}.rpb1$", f"{_FOCUS}.mixer.small_bias$"),
            Rule(f"{_FOCUS}.rpb2$", f"{_FOCUS}.mixer.large_bias$"),
            *_of(_FOCUS, ("dyconv_proj.0", "mixer.proj.conv"), ("dyconv_proj.1", "mixer.proj.norm")),
            *_of(_FOCUS, ("lepe.1", "lepe_norm"), ("lepe.0", "lepe"), ("se_layer", "se")),
            *_of(_FOCUS, ("gate.0", "gate.conv"), ("gate.1", "gate.norm"), ("proj.0", "proj_norm"), ("proj.1", "proj")),
            Rule(".lk_origin.", ".origin.conv."),
            Rule(".origin_bn.", ".origin.norm."),
            Rule(".dil_conv_k{i}_{j}.", ".branches.k{i}_{j}.conv."),
            Rule(".dil_bn_k{i}_{j}.", ".branches.k{i}_{j}.norm."),
            Rule(".se.proj.1.", ".se.fc1."),
            Rule(".se.proj.3.", ".se.fc2."),
            Rule(".mlp.0.", ".mlp.fc1."),
            Rule(".mlp.2.", ".mlp.conv.proj."),
            Rule(".mlp.3.", ".mlp.grn."),
            Rule(".mlp.4.", ".mlp.fc2."),
            Rule(".{x:ls|ls1|ls2|x_scale|h_scale}.weight$", ".{x}.gamma$", Axes("c111", "c")),
            Rule(".{x:ls|ls1|ls2|x_scale|h_scale}.bias$", ".{x}.beta$"),
            Rule(".grn.{x:gamma|beta}$", ".grn.{x}$", Axes("1c11", "c")),
            Rule("^blocks{s}.", "^base.{s-1}.blocks."),
            Rule("^sub_blocks{s}.", "^focus.{s-3}."),
            *pointwise("^context_proj", "^head", ".se.fc{i}", ".mlp.fc{i}", ".fusion.fc", ".mixer.taps", "^focus.{i}.{j}.proj"),
        ),
        ignored=(r"^aux_head\.",),
        deployed=r"\.lk_origin\.bias$",
    ),
)
