"""The zoo as a table: python -m vitlab.models ['pattern']."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from vitlab.analysis.counts import abstract_model, count_macs, count_params
from vitlab.config import near_misses
from vitlab.models.registry import family_of, list_models


def row(name: str) -> tuple[str, ...]:
    """One line of the table: ours beside what is published; "-" where nothing is."""
    published = family_of(name).published[name]
    model = abstract_model(name)
    params = published.params_m if published.params is None else published.params / 1e6
    return (
        name,
        f"{count_params(model) / 1e6:.3f}",
        "-" if params is None else f"{params:.3f}" if published.params else f"{params}",
        f"{count_macs(model) / 1e9:.2f}",
        "-" if published.gmacs is None else f"{published.gmacs:.2f}",
        "x".join(map(str, model.preprocessing.image_size)),
        "-" if published.top1 is None else f"{published.top1}",
        published.source,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitlab.models", description="The zoo as a table.")
    parser.add_argument("pattern", nargs="?", default="*", help="wildcards, such as 'swin*'")
    args = parser.parse_args(argv)
    names = list_models(args.pattern)
    if not names:
        print(f'no model matches "{args.pattern}": {near_misses(args.pattern, list_models())}', file=sys.stderr)
        return 2
    console = Console()
    if not console.is_terminal:
        console.width = 160
    table = Table("model", "params M", "published", "GMACs", "published", "pixels", "top-1 %", "source of top-1", box=None)
    for name in names:
        table.add_row(*row(name))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
