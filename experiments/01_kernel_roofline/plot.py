"""Draws results.csv: each kernel's fraction of the roofline, and the CPU's ratios of times.

Run: python experiments/01_kernel_roofline/plot.py
It needs matplotlib (extra `notebooks`) and writes roofline.png and cpu.png.
"""

import csv
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = pathlib.Path(__file__).parent


def draw(lines: list[dict[str, str]], column: str, title: str, output: str, scale: str = "linear") -> None:
    """Draws a group of bars per shape and pass, with one bar per implementation and dtype."""
    groups = list(dict.fromkeys((line["op"], line["shape"], line["pass"]) for line in lines))
    series = list(dict.fromkeys((line["implementation"], line["dtype"]) for line in lines))
    values = {((x["op"], x["shape"], x["pass"]), (x["implementation"], x["dtype"])): float(x[column]) for x in lines}
    figure, axes = plt.subplots(figsize=(9, 1 + 0.22 * len(groups) * max(1, len(series) / 2)), layout="constrained")
    height = 0.8 / len(series)
    for i, name in enumerate(series):
        places = [n + i * height for n, group in enumerate(groups) if (group, name) in values]
        axes.barh(places, [values[group, name] for group in groups if (group, name) in values], height, label=" ".join(name))
    axes.set_yticks([n + 0.4 - height / 2 for n in range(len(groups))], [" ".join(group[1:]) for group in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale(scale)
    axes.set_title(title)
    axes.legend(fontsize=8)
    figure.savefig(FOLDER / output, dpi=120)


def main() -> None:
    with (FOLDER / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    counted = [line for line in lines if line["kind"] == "counted" and line["roofline"]]
    if counted:
        draw(counted, "roofline", "TPU v5e, counted: least time / counted time", "roofline.png")
    measured = [line for line in lines if line["kind"] == "measured" and line["device"] == "cpu"]
    if measured:
        draw(measured, "ratio", "CPU, measured: time / the fastest implementation's", "cpu.png", "log")


if __name__ == "__main__":
    main()
