"""Compares CPU speed-ups that papers of efficient networks claim with those measured here.

See README.md. Existing rows in the results.csv of run.py are not measured again; the table goes
into README.md.

Run: pip install -e ".[parity]" && python experiments/03_against_timm/claims.py
"""

import dataclasses
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run

MARKS = re.compile(r"(<!-- python experiments/03_against_timm/claims.py -->\n).*?(<!-- end -->)", re.DOTALL)
LARGE = 512  # pixels per side, measured besides each model's own size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that a model is `speedup` times as fast as a baseline of timm's on a CPU."""

    model: str
    baseline: str  # timm's name of the baseline
    speedup: float
    source: str


CLAIMS = (
    Claim(model="efficientvit_m2", baseline="mobilevit_xxs", speedup=3.7, source="arXiv:2305.07027, abstract"),
    Claim(model="efficientvit_m5", baseline="mobilenetv3_large_100", speedup=1.452, source="arXiv:2305.07027, abstract"),
    Claim(model="shvit_s4", baseline="mobilevitv2_100", speedup=8.1, source="arXiv:2401.16456, abstract"),
)


def measurements(claim: Claim, size: int) -> list[tuple[str, str, str, int]]:
    """Returns the keys of three measurements: ours, timm's and timm's baseline."""
    return [(model, "eval", size, system) for model, system in ((claim.model, "vitlab"), (claim.model, "timm"), (claim.baseline, "timm"))]


def table() -> str:
    found = run.rows()
    lines = ["| model | over | pixels | claimed | timm here | vitlab here | images/s: ours, timm's, the baseline's |", "|" + "---|" * 7]
    for claim in CLAIMS:
        for size in sorted({key[2] for key in found if key[0] == claim.model}):
            ours, theirs, baseline = (run.speed(found.get(key)) for key in measurements(claim, size))
            ratios = (f"{speed / baseline:.2f}" if speed and baseline else "-" for speed in (theirs, ours))
            cells = [f"`{claim.model}`", f"`{claim.baseline}`", str(size), f"{claim.speedup:.3g} ({claim.source})", *ratios]
            lines.append(f"| {' | '.join(cells)} | {', '.join(f'{speed:.3g}' if speed else '-' for speed in (ours, theirs, baseline))} |")
    return "\n".join(lines)


def main() -> None:
    from vitlab.models.registry import model_config

    for claim in CLAIMS:
        for size in (model_config(claim.model).image_size[0], LARGE):
            run.measure_missing(measurements(claim, size))
    run.write_table(MARKS, table())


if __name__ == "__main__":
    main()
