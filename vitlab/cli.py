"""Shared parts of the commands: config files, typed overrides, one-line errors with exit code 2."""

import argparse
import ast
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import flags

from pallas_kernels.dispatch import UnsupportedError
from vitlab import recipes, terminal
from vitlab.buckets import RunPath, run_path
from vitlab.config import ConfigError, Experiment, from_config_dict, near_misses, to_dict
from vitlab.config.values import leaf_types, plain_type

__all__ = [
    "CONFIG_HELP",
    "EXIT_BROKEN_PIPE",
    "EXIT_USAGE",
    "Parser",
    "begin",
    "literal",
    "load_experiment",
    "override",
    "run",
    "run_folder",
    "split_overrides",
]

EXIT_FAILED = 1  # the command was valid, but could not be carried out
EXIT_BROKEN_PIPE = 141  # the reader of the output has gone; shells give this code for it
EXIT_USAGE = 2  # the command, the config or the data cannot be used; nothing was begun
CONFIG_HELP = "config file, path.py or path.py:variant, or a recipe of the package, vitlab:quickstart or vitlab:NAME:variant"
_PREFIX = "--config."
_UNKNOWN = re.compile("unrecognized arguments: (--?[^ =]+)")  # argparse's own message
_KEYS = """Every key of the config can be set: --config.optimizer.peak_lr=1e-3. `python -m vitlab.config` explains the keys, and
`python -m vitlab.config --config=FILE` shows their values in a config file."""


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors that suggest options; its help ends in an example."""

    def __init__(self, *, example: str = "", keys: bool = False, **options: Any):
        """Takes the options of argparse and two more.

        Args:
          example: A command line to copy.
          keys: Whether the command takes `--config.a.b=value`; its help then says where keys are
            explained.
          **options: Options of `argparse.ArgumentParser`.
        """
        parts = [f"example: {example}"] * bool(example) + [_KEYS] * keys
        options = {"epilog": "\n\n".join(parts), "formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        unknown = _UNKNOWN.match(message)
        near = f"; {near_misses(unknown[1], self._option_string_actions)}" if unknown else ""
        raise ConfigError(f"{message}{near} (see {self.prog} --help)")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Calls a command's `main` with the arguments of the process and exits with its code.

    A user's mistake (ConfigError, UnsupportedError) becomes one line on stderr and exit code 2; any
    other error keeps its traceback. It is no error if the reader of the output has gone (`| head`).
    Output that cannot be written is reported on one line.
    """
    sys.excepthook = terminal.show_exception
    sys.unraisablehook = _without_late_futures(sys.unraisablehook)
    if not flags.FLAGS.is_parsed():  # worker processes of the input pipeline read absl's flags; these commands have none
        flags.FLAGS.mark_as_parsed()
    try:
        with terminal.checked_output():
            code = main(sys.argv[1:])
    except (ConfigError, UnsupportedError) as error:
        terminal.say(f"error: {' '.join(str(error).split())}", error=True)
        code = EXIT_USAGE
    except BrokenPipeError:
        code = EXIT_BROKEN_PIPE
    except terminal.OutputError as error:
        terminal.say(f"error: the output cannot be written: {error.strerror}", error=True)
        code = EXIT_FAILED
    finally:
        terminal.settle()
    sys.exit(code)


def _without_late_futures(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Hides errors of TensorStore's threads that follow a failed write, which is already reported.

    They are raised once Orbax has closed its event loop.
    """

    def show(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return show


def run_folder(text: str) -> RunPath:
    """The path of a run folder, as the type of an argument; the parser shows what is wrong."""
    try:
        return run_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates the `--config.a.b=text` arguments: (the other arguments, {"a.b": text}).

    Raises:
      ConfigError: An override has no value.
    """
    overrides = {}
    for argument in argv:
        if argument.startswith(_PREFIX):
            path, equals, text = argument.removeprefix(_PREFIX).partition("=")
            if not equals:
                raise ConfigError(f"{argument} has no value: write {argument}=value")
            overrides[path] = text
    return [a for a in argv if not a.startswith(_PREFIX)], overrides


def load_experiment(config: str, overrides: Mapping[str, str]) -> Experiment:
    """Runs `get_config(variant)` of "path.py:variant" or "vitlab:name:variant", and overrides it.

    Raises:
      ConfigError: There is no such file, recipe or variant, no `get_config`, a key is unknown
        (similar keys are named), or a value has another type.
    """
    path, _, variant = config.removeprefix(recipes.PREFIX).partition(":")
    file = recipes.path_of(path) if config.startswith(recipes.PREFIX) else pathlib.Path(path)
    return override(from_config_dict(_get_config(file, variant)), overrides)


def override(experiment: Experiment, overrides: Mapping[str, str]) -> Experiment:
    """The experiment with values replaced, such as {"optimizer.peak_lr": "1e-3"}.

    Raises:
      ConfigError: For the reasons of `load_experiment`.
    """
    tree = to_dict(experiment)
    for dotted, text in overrides.items():
        _override(tree, dotted, text)
    return from_config_dict(tree)


def begin() -> None:
    """Prepares a command that computes: logging, and the cache of compiled programs.

    The loggers of absl, through which Orbax and Grain report, and of what reads buckets are
    silenced: they report, with tracebacks, errors that are also raised and that a command reports
    on one line.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[terminal.LogHandler()], force=True)
    for name in ("absl", "gcsfs", "s3fs", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _use_compilation_cache()


def _use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder; JAX_COMPILATION_CACHE_DIR names another.

    A user without a home folder, as in many containers, gets no cache.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = "~" if os.environ.get("HOME", "~") else ""  # an empty HOME counts as none
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(f"{home}/.cache".lstrip("/")))
        if cache.is_absolute():
            jax.config.update("jax_compilation_cache_dir", str(cache / "vitlab" / "xla"))


def _get_config(path: pathlib.Path, variant: str) -> Any:
    if not os.path.isfile(path):
        raise ConfigError(f"there is no config file {path}")
    spec = importlib.util.spec_from_file_location("vitlab_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {path} must be a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path} must define get_config(variant)")
    if not variant:
        return module.get_config()
    if not inspect.signature(module.get_config).parameters:
        raise ConfigError(f'{path} has no variants: leave out ":{variant}"')
    try:
        return module.get_config(variant)
    except ConfigError:
        raise
    except (KeyError, ValueError) as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f'{path} refuses the variant "{variant}": {type(error).__name__}: {error} ({line.filename}, line {line.lineno})'
        ) from error


def _override(tree: dict[str, Any], dotted: str, text: str) -> None:
    """Sets one value; `from_config_dict` checks key and type afterwards."""
    types_, path = leaf_types(Experiment), tuple(dotted.split("."))
    *parents, key = path
    if inside := [leaf for leaf in types_ if leaf[: len(path)] == path != leaf]:
        raise ConfigError(f"--config.{dotted} is a group: set its keys one by one, such as --config.{'.'.join(inside[0])}")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--config.{dotted}: {parent} is a value, not a group")
    is_text = plain_type(types_[path]) is str if path in types_ else isinstance(tree.get(key), str)
    tree[key] = text if is_text and text != "None" else literal(text)


def literal(text: str) -> Any:
    """The Python value that the text spells, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: {[]: 1}; the last two: too many brackets
        return text
