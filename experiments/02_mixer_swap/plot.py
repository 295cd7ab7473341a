"""Writes the table of README.md and draws a figure, from results.csv and costs.csv.

Run: python experiments/02_mixer_swap/plot.py            # writes the table into README.md
     python experiments/02_mixer_swap/plot.py --figure mixers.png
The figure needs matplotlib: pip install "vitlab[notebooks]".
"""

import argparse
import csv
import pathlib
import re
import statistics

HERE = pathlib.Path(__file__).parent
MARKS = re.compile(r"(<!-- python experiments/02_mixer_swap/plot.py -->\n).*(<!-- end -->)", re.DOTALL)


def rows(name: str) -> list[dict[str, str]]:
    path = HERE / name
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def costs() -> dict[str, dict[str, str]]:
    """Returns mixer -> its row of costs of a step."""
    return {dict(re.findall(r"(\w+)=(\S+)", row["fields"]))["mixers"]: row for row in rows("costs.csv")}


def accuracies() -> dict[str, list[float]]:
    """Returns mixer -> top-1 in percent, one value per seed."""
    out: dict[str, list[float]] = {}
    for row in rows("results.csv"):
        out.setdefault(row["mixer"], []).append(float(row["top1"]))
    return out


def table() -> str:
    """Returns a Markdown table, the most accurate mixer first; untrained mixers come last."""
    known, top1 = costs(), accuracies()
    lines = ["| mixer | parameters | MMACs | images/s | MiB | top-1, % (mean) | of each seed |", "|---|---|---|---|---|---|---|"]
    for mixer in sorted(known, key=lambda m: -statistics.mean(top1.get(m, [0]))):
        cost, values = known[mixer], top1.get(mixer, [])
        lines.append(
            f"| `{mixer}` | {int(cost['params']):,} | {1000 * float(cost['gmacs']):.1f} | {float(cost['images_per_second']):.0f} | "
            f"{int(cost['peak_bytes']) / 2**20:.0f} | {f'{statistics.mean(values):.1f}' if values else '-'} | "
            f"{', '.join(f'{x:.1f}' for x in values) or '-'} |"
        )
    return "\n".join(lines)


def figure(path: pathlib.Path) -> None:
    """Draws top-1 of every seed over the multiply-accumulates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = costs()
    fig, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for mixer, values in accuracies().items():
        x = 1000 * float(known[mixer]["gmacs"])
        (line,) = axes.plot([x] * len(values), values, "-o", markersize=4, linewidth=1)
        axes.annotate(mixer, (x, statistics.mean(values)), (6, 0), textcoords="offset points", fontsize=8, color=line.get_color())
    axes.set_xlabel("MMACs of an image")
    axes.set_ylabel("top-1, %")
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=pathlib.Path, help="image file to draw")
    args = parser.parse_args()
    readme = HERE / "README.md"
    readme.write_text(MARKS.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", readme.read_text()))
    if args.figure:
        figure(args.figure)


if __name__ == "__main__":
    main()
