"""Names of MzeroMiko/VMamba's SS2D."""

from vitlab.weights.rules import Axes, Grouped, Inverse, NameMap, Rule, pointwise


def rules(prefix: str) -> tuple[Rule, ...]:
    """The rules of an SS2D whose names begin with a prefix, a template."""
    return (
        Rule(f"{prefix}x_proj_weight$", f"{prefix}scan.x_proj.weight$", Inverse(Grouped(4))),  # names of the first version
        Rule(f"{prefix}dt_projs_weight$", f"{prefix}scan.dt_weight$"),
        *pointwise(f"{prefix}{{x:in|out}}_proj"),
        Rule(f"{prefix}x_proj.weight$", f"{prefix}scan.x_proj.weight$", Axes("oi1", "oi")),
        Rule(f"{prefix}dt_projs.weight$", f"{prefix}scan.dt_weight$", Grouped(4)),
        Rule(f"{prefix}dt_projs_bias$", f"{prefix}scan.dt_bias$"),
        Rule(f"{prefix}A_logs$", f"{prefix}scan.a_log$", Grouped(4)),
        Rule(f"{prefix}Ds$", f"{prefix}scan.skip$", Grouped(4)),
    )


MAPS = (NameMap(source="MzeroMiko/VMamba", rules=rules("^")),)
