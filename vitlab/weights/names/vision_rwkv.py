"""Names of OpenGVLab/Vision-RWKV's spatial and channel mixing."""

from vitlab.weights.rules import Axes, NameMap, Rule


def rules(prefix: str) -> tuple[Rule, ...]:
    """The rules of a mixing whose names begin with a prefix, a template."""
    return (
        Rule(f"{prefix}spatial_mix_{{x:k|v|r}}$", f"{prefix}mix_{{x}}$", Axes("11c", "c")),
        Rule(f"{prefix}spatial_{{x:decay|first}}$", f"{prefix}{{x}}$"),
    )


MAPS = (NameMap(source="OpenGVLab/Vision-RWKV", rules=rules("^")),)
