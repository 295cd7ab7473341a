"""Compares the metrics and configs of runs: python -m vitlab.compare RUN... [--output=curves.png].

Prints a table (newest and best evaluation, steps, images/s) and the config keys that differ; draws
the curves into one picture. Unfinished runs are shown as far as they are; damaged parts of a run
folder are reported and left out.

Exit codes: 0 done; 2 the command cannot be used, or no run has anything to show.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from vitlab import cli
from vitlab.buckets import RunPath
from vitlab.config import ConfigError, Experiment, difference
from vitlab.drawing.chart import COLOURS, Chart
from vitlab.files import read_bytes
from vitlab.printable import printable
from vitlab.runs import folder
from vitlab.tasks import task_of

METRICS = ("eval_top1", "eval_loss", "train_loss")
_LEGEND = 220  # pixels beside a chart, for the legend
_NARROWEST = 120  # columns of the table, besides those of the runs, where the output is no terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its folder describes it."""

    name: str
    experiment: Experiment | None  # None if config.json cannot be read
    lines: tuple[dict[str, Any], ...]  # complete lines of metrics.jsonl, by step
    images_per_second: float | None  # median; None if nothing was timed
    complaints: tuple[str, ...]  # files that could not be read, with the reason

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, at the steps that have it."""
        points = [(line["step"], line[metric]) for line in self.lines if _is_number(line.get(metric))]
        return [float(step) for step, _ in points], [float(value) for _, value in points]


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    args = _arguments(argv)
    cli.begin()
    runs = [read_run(path) for path in args.runs]
    for run in runs:
        for complaint in run.complaints:
            print(f"warning: {printable(run.name)}: {printable(complaint)}", file=sys.stderr)
    if not any(run.lines for run in runs):
        raise ConfigError("none of these folders has a record of training: give run folders of python -m vitlab.train")
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_NARROWEST + 24 * len(runs))
    console.print(summary(runs))
    known = [run for run in runs if run.experiment is not None]
    if len(known) > 1:
        console.print(differences(known))
    if args.output:
        try:
            draw(runs, args.metrics).save(args.output, "PNG")
        except OSError as error:
            raise ConfigError(f"--output={args.output} cannot be written: {error.strerror or error}") from error
        print(f"curves: {args.output}")
    return 0


def read_run(path: RunPath) -> Run:
    """Reads what can be read of a run folder, and lists the rest in `complaints`."""
    complaints, experiment = [], None
    try:
        experiment, _ = folder.read(path)
    except ConfigError as error:
        complaints.append(str(error))
    lines, broken = _json_lines(path / "metrics.jsonl")
    timing, broken_timing = _json_lines(path / "timing.jsonl")
    complaints += [text for text in (broken, broken_timing) if text]
    speeds = [line["images_per_second"] for line in timing if _is_number(line.get("images_per_second"))]
    return Run(
        name=str(path),
        experiment=experiment,
        lines=tuple(sorted(lines, key=lambda line: line["step"])),
        images_per_second=statistics.median(speeds) if speeds else None,
        complaints=tuple(complaints),
    )


def summary(runs: Sequence[Run]) -> Table:
    """One row a run: its newest and its best evaluation by the metric of its task.

    Evaluations of the averaged weights are preferred where there are any.
    """
    heads = {_best_metric(run)[0] for run in runs}
    title = "top-1" if heads == {"top1"} else heads.pop() if len(heads) == 1 else "metric"
    table = Table("run", "model", "steps", title, f"best {title}", "at step", "loss", "images/s")
    for run in runs:
        name, direction = _best_metric(run)
        prefix = "eval_average_" if run.curve(f"eval_average_{name}")[0] else "eval_"
        steps, values = run.curve(prefix + name)
        losses = run.curve(f"{prefix}loss")[1]
        best = (max if direction == "max" else min)(range(len(values)), key=values.__getitem__, default=None)
        shown = "{:.2%}".format if name == "top1" else "{:.4g}".format if title != "metric" else f"{{:.4g}} {name}".format
        newest = max((line["step"] for line in run.lines), default=0)
        table.add_row(
            *(printable(run.name), run.experiment.model.name if run.experiment else "?", f"{newest:.0f}"),
            shown(values[-1]) if values else "-",
            *((shown(values[best]), f"{steps[best]:.0f}") if best is not None else ("-", "-")),
            f"{losses[-1]:.4f}" if losses else "-",
            f"{run.images_per_second:.0f}" if run.images_per_second is not None else "-",
        )
    return table


def _best_metric(run: Run) -> tuple[str, str]:
    """The metric by which a run's best evaluation is chosen, and whether "max" or "min" is best."""
    if run.experiment is None or run.experiment.task.name == "classification":
        return "top1", "max"
    try:
        return task_of(run.experiment)[0].best
    except ConfigError:  # the user's own task no longer exists
        return "loss", "min"


def differences(runs: Sequence[Run]) -> Table:
    """One row for each config key that differs between the runs."""
    first, *others = [run.experiment for run in runs if run.experiment is not None]
    against = [difference(first, other) for other in others]
    table = Table("what differs", *(printable(run.name) for run in runs))
    for key in sorted({key for found in against for key in found}):
        own = next(found[key][0] for found in against if key in found)
        values = [own, *(found[key][1] if key in found else own for found in against)]
        table.add_row(key, *(printable(str(value)) for value in values))
    if not table.row_count:
        table.add_row("nothing", *[""] * len(runs))
    return table


def draw(runs: Sequence[Run], metrics: Sequence[str] = METRICS) -> Image.Image:
    """Draws a chart over the steps for each metric that a run has, one below the other.

    Raises:
      ConfigError: No run has any of the metrics.
    """
    charts = []
    for metric in metrics:
        curves = [run.curve(metric) for run in runs]
        xs, ys = ([v for curve in curves for v in curve[i]] for i in (0, 1))
        if not xs:
            continue
        chart = Chart(metric, (0, max(xs)), (min(ys), max(ys)), size=(760 + _LEGEND, 360), right=_LEGEND)
        for i, (steps, values) in enumerate(curves):
            chart.line(steps, values, COLOURS[i % len(COLOURS)])
        chart.legend([run.name for run in runs], [COLOURS[i % len(COLOURS)] for i in range(len(runs))])
        chart.label("step")
        charts.append(chart.image)
    if not charts:
        names = sorted({name for run in runs for line in run.lines for name in line} - {"step"})
        raise ConfigError(f"no run has any of --metrics={','.join(metrics)}; there are: {', '.join(names)}")
    picture = Image.new("RGB", (charts[0].width, sum(chart.height for chart in charts)), "white")
    for i, chart in enumerate(charts):
        picture.paste(chart, (0, sum(c.height for c in charts[:i])))
    return picture


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m vitlab.compare",
        description=__doc__,
        example="python -m vitlab.compare runs/a runs/b --output=curves.png",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=cli.run_folder, metavar="RUN", help="run folders, here or in a bucket")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="the PNG with the curves")
    parser.add_argument("--metrics", default=",".join(METRICS), help="what is drawn, names of metrics.jsonl with commas between")
    args = parser.parse_args(argv)
    args.metrics = tuple(filter(None, (name.strip() for name in args.metrics.split(","))))
    if not args.metrics:
        raise ConfigError("--metrics must name at least one metric, such as eval_top1")
    if args.output and (args.output.suffix.lower() != ".png" or not args.output.parent.is_dir()):
        raise ConfigError(f"--output={args.output} must be a file *.png in a folder that exists")
    return args


def _json_lines(path: RunPath) -> tuple[list[dict[str, Any]], str]:
    """The complete records, and a complaint about damaged lines; the last may be unfinished."""
    try:
        texts = read_bytes(path).splitlines(keepends=True)
    except OSError as error:
        return [], f"{path.name} cannot be read ({error.strerror})"
    lines, broken = [], []
    for number, text in enumerate(texts, 1):
        if text.endswith(b"\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict) and _is_number(line.get("step")):
                lines.append(line)
            else:
                broken.append(number)
    return lines, f"{path.name}: {len(broken)} lines are damaged, the first is line {broken[0]}" if broken else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


if __name__ == "__main__":
    cli.run(main)
