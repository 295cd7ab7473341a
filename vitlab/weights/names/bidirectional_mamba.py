"""Names of hustvl/Vim's Mamba block with two directions (`bimamba_type="v2"`)."""

from vitlab.weights.rules import Grouped, NameMap, Rule


def rules(prefix: str) -> tuple[Rule, ...]:
    """The rules of a block whose names begin with a prefix, a template."""
    out = []
    for tail, where in (("", "forward"), ("_b", "backward")):
        out += [
            Rule(f"{prefix}conv1d{tail}.", f"{prefix}{where}.conv1d."),
            Rule(f"{prefix}x_proj{tail}.", f"{prefix}{where}.scan.x_proj."),
            Rule(f"{prefix}dt_proj{tail}.weight$", f"{prefix}{where}.scan.dt_weight$", Grouped(1)),
            Rule(f"{prefix}dt_proj{tail}.bias$", f"{prefix}{where}.scan.dt_bias$", Grouped(1)),
            Rule(f"{prefix}A{tail}_log$", f"{prefix}{where}.scan.a_log$", Grouped(1)),
            Rule(f"{prefix}D{tail}$", f"{prefix}{where}.scan.skip$", Grouped(1)),
        ]
    return tuple(out)


MAPS = (NameMap(source="hustvl/Vim", rules=rules("^")),)
