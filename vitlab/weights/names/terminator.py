"""Names of the author's Terminator, whose linear layers are 1 x 1 convolutions of maps, or of rows
of channels.
"""

from vitlab.weights.rules import Axes, NameMap, Rule

_BRANCH = "^blocks.{i}.fast_multi_branch."
_PARTS = "linears|output_linear|filters|fast_reduce|fast_fc1|fast_linears_x"
_1D = tuple(
    Rule(f".{net}.{part}.weight$", f".{net}.{part}.weight$", Axes("oi1", "oi"))
    for net in ("slow_net_gc", "slow_net_gc_hi")
    for part in ("linears.{j}", "output_linear", "filters.{j}")
)
_2D = tuple(
    Rule(f".{part}.weight$", f".{part}.weight$", Axes("oi11", "oi"))
    for net in ("slow_net_g", "slow_net_gs_hi", "locals.{k}.slow_net")
    for part in (f"{net}.linears.{{j}}", f"{net}.output_linear", f"{net}.filters.{{j}}")
) + tuple(
    Rule(f".{part}.weight$", f".{part}.weight$", Axes("oi11", "oi"))
    for part in (
        "channel_mixer",
        "channel_mixer_mlp",
        "bottleneck_layer",
        "fast_linear_{x:k|v|q|y}",
        "fast_reduce",
        "fast_fc1",
        "fast_linears_x.{j}",
    )
)
MAPS = (
    NameMap(
        source="hyperevolnet/Terminator",
        rules=(
            Rule(f"{_BRANCH}bias{{k+1}}$", "^blocks.{i}.locals.{k}.bias$"),
            Rule(f"{_BRANCH}slow_net_l{{k+1}}.Kernel.bias_pk$", "^blocks.{i}.locals.{k}.slow_net.bias_p$", Axes("11hw", "hw")),
            Rule(f"{_BRANCH}slow_net_l{{k+1}}.Kernel.{{x:{_PARTS}}}.", "^blocks.{i}.locals.{k}.slow_net.{x}."),
            Rule(f"{_BRANCH}local_interact_conv_{{k+1}}.channel_mixer.", "^blocks.{i}.locals.{k}.channel_mixer."),
            Rule(f"{_BRANCH}channel_mixer_hci.slow_net_gc.Kernel.bias_p$", "^blocks.{i}.slow_net_gc.bias_p$", Axes("11c", "c")),
            Rule(f"{_BRANCH}channel_mixer_hci.slow_net_gc.Kernel.", "^blocks.{i}.slow_net_gc."),
            Rule(f"{_BRANCH}hyper_interact.slow_net_gc_hi.Kernel.bias_p$", "^blocks.{i}.slow_net_gc_hi.bias_p$", Axes("11c", "c")),
            Rule(f"{_BRANCH}hyper_interact.slow_net_gs_hi.Kernel.bias_p$", "^blocks.{i}.slow_net_gs_hi.bias_p$", Axes("11hw", "hw")),
            Rule(f"{_BRANCH}hyper_interact.{{x:slow_net_gc_hi|slow_net_gs_hi}}.Kernel.", "^blocks.{i}.{x}."),
            Rule(f"{_BRANCH}slow_net_g.Kernel.bias_p$", "^blocks.{i}.slow_net_g.bias_p$", Axes("11hw", "hw")),
            Rule(f"{_BRANCH}slow_net_g.Kernel.", "^blocks.{i}.slow_net_g."),
            Rule(f"{_BRANCH}Fast_Kernel_rgu.bias_p$", "^blocks.{i}.fast_rgu.bias_p$", Axes("11hw", "hw")),
            Rule(f"{_BRANCH}Fast_Kernel_rgu_2.bias_p$", "^blocks.{i}.slow_rgu.bias_p$", Axes("11hw", "hw")),
            Rule(f"{_BRANCH}Fast_Kernel_rgu.", "^blocks.{i}.fast_rgu."),
            Rule(f"{_BRANCH}Fast_Kernel_rgu_2.", "^blocks.{i}.slow_rgu."),
            Rule(f"{_BRANCH}{{x:channel_mixer_mlp|bottleneck_layer}}.", "^blocks.{i}.{x}."),
            Rule(".filters.{j}.linear.", ".filters.{j}."),
            Rule("^out_layer.", "^head."),
            *_1D,
            *_2D,
        ),
    ),
)
