"""Folders that evaluations are written to: below the run folder, or where the user says."""

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from vitlab.buckets import RunPath, in_bucket
from vitlab.config import ConfigError
from vitlab.files import write_atomically

logger = logging.getLogger(__name__)

FILE = "evaluation.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)


def check_name(name: str) -> None:
    """Refuses an evaluation's name that cannot be the name of a folder.

    Raises:
      ConfigError: It has other characters than letters, digits and ._+-, or begins with
        one of ._+-.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name={name} must be letters, digits and ._+- (at most 100), and begin with a letter or digit")


def default_name(protocol: str, origin: Mapping[str, Any], split: str, fingerprint: str | None) -> str:
    """The default name of an evaluation: what was evaluated on which split, "step60-averaged-test".

    Args:
      protocol: The first part of the name, unless it is "classification".
      origin: See `vitlab.runs.trained.Trained`.
      split: Name of the split; characters that a name cannot have become "_".
      fingerprint: Fingerprint of the data if it may differ from the run's, else None.
    """
    what = [f"step{origin['step']}"] if "step" in origin else [origin["model"]]
    averaged = ["averaged"] if origin.get("weights") == "averaged" else []
    parts = [*what, *averaged, split, *([fingerprint[:8]] if fingerprint else [])]
    parts = parts if protocol == "classification" else [protocol, *parts]
    return "-".join(re.sub(r"[^\w.+-]+", "_", part, flags=re.ASCII).strip("_") for part in map(str, parts))[:100]


def make_folder(parent: RunPath) -> None:
    """Makes the folder for evaluations, before anything is computed; a bucket needs none.

    Raises:
      ConfigError: It cannot be made or written to.
    """
    if in_bucket(parent):
        return
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{parent} cannot be made ({error.strerror}): give another folder with --output=DIR") from error
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"{parent} is not writable: give another folder with --output=DIR")


def write_result(result: Mapping[str, Any], *folders: RunPath) -> None:
    """Writes evaluation.json into each folder.

    A failure is only logged, since the result is also printed.
    """
    for folder in folders:
        try:
            if not in_bucket(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILE, json.dumps(result) + "\n")
        except OSError as error:
            logger.error("%s is not written: %s", folder / FILE, error.strerror or error)
