"""The zoo as a table: python -m vitlab.models ['pattern'] [--markdown | --weights]."""

import importlib
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from vitlab import cli
from vitlab.analysis.counts import count_macs, count_params
from vitlab.config import ConfigError, near_misses
from vitlab.config.references import is_reference
from vitlab.models.catalogue import checkpoints_of
from vitlab.models.registry import Published, abstract_model, family_of, list_models


def row(name: str) -> tuple[str, ...]:
    """Returns one line of the table: our counts beside published figures, "-" for none."""
    published = family_of(name).published.get(name, Published())
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


def markdown(names: Iterable[str]) -> str:
    """Returns the zoo's table in the documentation: a row per family, of published figures only.

    The tests compare our own counts with these figures.
    """
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family_of(name).model.__module__, []).append(name)
    lines = ["| family | variants | parameters, M | GMACs | published top-1, % |", "|---|---|---|---|---|"]
    for module, members in sorted(families.items()):
        published = [family_of(name).published[name] for name in members]
        title = " ".join((importlib.import_module(module).__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        params = [p.params / 1e6 if p.params else p.params_m for p in published]
        columns = (params, [p.gmacs for p in published], [p.top1 for p in published])
        lines.append(f"| {title} | {', '.join(f'`{name}`' for name in members)} | {' | '.join(map(_range, columns))} |")
    return "\n".join(lines)


def _range(values: Iterable[float | None]) -> str:
    known = sorted(v for v in values if v is not None)
    ends = [f"{v:.1f}" for v in known[:: max(1, len(known) - 1)]]
    return " to ".join(dict.fromkeys(ends)) or "-"


def print_weights(names: Iterable[str], console: Console) -> None:
    """Prints the published checkpoints of variants, "-" for what is not known of one."""
    table = Table("model", "weights", "address", "licence", "figure %", "measure", "sha256", "source", box=None)
    for row in (row for name in names for row in checkpoints_of(name).values()):
        cells = (row.variant, row.name, row.address, row.licence, row.figure, row.measure, row.sha256, row.source)
        table.add_row(*(cell or "-" for cell in cells))
    if not table.row_count:
        raise ConfigError(f"no published checkpoint of these {len(list(names))} models is listed; vitlab.load_weights takes any file")
    console.print(table)


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="python -m vitlab.models", description="The zoo as a table.", example="python -m vitlab.models 'swin*'", allow_abbrev=False
    )
    parser.add_argument("pattern", nargs="?", default="*", help="wildcards, such as 'swin*', or a model of your own, file.py:variant")
    parser.add_argument("--markdown", action="store_true", help="a row a family, as in the README")
    parser.add_argument("--weights", action="store_true", help="published checkpoints by the short names that create_model takes")
    args = parser.parse_args(argv)
    names = [args.pattern] if is_reference(args.pattern) else list_models(args.pattern)
    if not names:
        raise ConfigError(f'no model matches "{args.pattern}": {near_misses(args.pattern.strip("*?"), list_models())}')
    if args.markdown:
        print(markdown(names))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = 160
    if args.weights:
        print_weights(names, console)
        return 0
    table = Table("model", "params M", "published", "GMACs", "published", "pixels", "top-1 %", "source of top-1", box=None)
    for name in names:
        table.add_row(*row(name))
    console.print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
