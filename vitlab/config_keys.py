"""The command `python -m vitlab.config`: type, default, bounds and meaning of every config key."""

from collections.abc import Sequence

from vitlab import cli
from vitlab.config import ConfigError, Experiment, refusing
from vitlab.config.reference import describe, markdown
from vitlab.models.registry import model_config
from vitlab.tasks import task_of


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.Parser(
        prog="python -m vitlab.config",
        description="Every key of a config with its type, default, bounds and meaning.",
        example="python -m vitlab.config --config=configs/quickstart.py --config.seed=1",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help=f"whose values are shown: {cli.CONFIG_HELP}")
    parser.add_argument("--markdown", action="store_true", help="the keys with their defaults, as tables")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    if overrides and not args.config:
        raise ConfigError(f"--config.{next(iter(overrides))} needs --config=FILE, the config that it changes")
    if args.markdown and args.config:
        raise ConfigError("--markdown shows defaults only: leave out --config")
    if args.markdown:
        print(markdown())
        return 0
    experiment = cli.load_experiment(args.config, overrides) if args.config else None
    print(describe(experiment))
    print(family_fields(experiment) if experiment else "\n# model.*: fields of the model's family; --config=FILE shows them")
    print(task_options(experiment) if experiment else "\n# task.*: options of the task; --config=FILE shows them")
    return 0


def task_options(experiment: Experiment) -> str:
    """The options of the task, which are keys of `task` too.

    Raises:
      ConfigError: There is no such task or option.
    """
    _, options = task_of(experiment)
    given, cls = experiment.task.fields, type(options)
    lines = [f"task.{name} = {value!r}{' (set by the config)' * (name in given)}" for name, value in vars(options).items()]
    return "\n".join(["", f"# task.*: options of {experiment.task.name}, of {cls.__name__} in {cls.__module__}", *(lines or ["# none"])])


def family_fields(experiment: Experiment) -> str:
    """The fields of the model's own family, which are keys of `model` too.

    Raises:
      ConfigError: There is no such model, or the fields cannot work together.
    """
    model = experiment.model
    with refusing(ValueError):
        config = model_config(model.name, **model.fields)
    hidden = {"preprocessing", *vars(model)}
    values = {name: value for name, value in vars(config).items() if name not in hidden}
    marks = {name: " (set by the config)" if name in model.fields else "" for name in values}
    head = f"# model.*: fields of {model.name}, of {type(config).__name__} in {type(config).__module__}"
    return "\n".join(["", head, *(f"model.{name} = {value!r}{marks[name]}" for name, value in values.items())])


if __name__ == "__main__":
    cli.run(main)
