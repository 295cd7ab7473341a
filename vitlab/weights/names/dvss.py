"""Names of zhanghao5201/HRVMamba's blocks, and of the scans that it and others take from VMamba's
first version.
"""

from vitlab.weights.rules import Grouped, Inverse, NameMap, Rule


def scan_rules(prefix: str) -> tuple[Rule, ...]:
    """The rules of a selective scan of four groups, whose names begin with a prefix, a template."""
    return (
        Rule(f"{prefix}x_proj_weight$", f"{prefix}scan.x_proj.weight$", Inverse(Grouped(4))),
        Rule(f"{prefix}dt_projs_weight$", f"{prefix}scan.dt_weight$"),
        Rule(f"{prefix}dt_projs_bias$", f"{prefix}scan.dt_bias$"),
        Rule(f"{prefix}A_logs$", f"{prefix}scan.a_log$", Grouped(4)),
        Rule(f"{prefix}Ds$", f"{prefix}scan.skip$", Grouped(4)),
    )


MAPS = (
    NameMap(
        source="zhanghao5201/HRVMamba",
        rules=(
            *scan_rules("^op."),
            Rule("^op.se.fc.0.", "^op.se.fc1."),
            Rule("^op.se.fc.2.", "^op.se.fc2."),
            Rule("^op.", "^mixer."),
            Rule("^conv2d.", "^conv2d.convs."),
            Rule("^norm.", "^norm1."),
        ),
    ),
)
