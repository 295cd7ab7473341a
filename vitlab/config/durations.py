"""Durations: a number and a unit, such as "90 epochs".

Units are steps, epochs, examples ("1e6 examples") and percent of the whole run ("5 percent").
"""

import re

from vitlab.config.errors import ConfigError

_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "%": "percent"}  # other spellings of a unit -> the unit
_DURATION = re.compile(r"\s*(?P<number>([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)\s*(?P<unit>steps?|epochs?|examples?|percent|%)\s*")
_MOST = 1e15  # largest number of any unit; a larger one is taken for a typing error


def parse_duration(text: str) -> tuple[float, str]:
    """Splits "90 epochs" into (90.0, "epochs").

    Raises:
      ConfigError: The text is not a number in [0, 1e15] and one of steps, epochs, examples,
        percent.
    """
    match = _DURATION.fullmatch(text)
    if not match or float(match["number"]) > _MOST:
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        rule = 'must be a number and a unit: "90 epochs", "500 steps", "1e6 examples", "5 percent"'
        raise ConfigError(f'duration "{shown}" {rule}{f"; the number at most {_MOST:g}" if match else ""}')
    return float(match["number"]), _UNITS.get(match["unit"], match["unit"])


def plain_duration(text: str) -> str:
    """The canonical text of a duration: "4steps" and "4.0 step" become "4 steps".

    A number that is an integer is written without exponent: "1e6 examples" is "1000000 examples".

    Raises:
      ConfigError: As `parse_duration`.
    """
    number, unit = parse_duration(text)
    return f"{int(number) if number.is_integer() else number} {unit}"


def duration_in_steps(text: str, *, batch_size: int, examples_per_epoch: int, total_steps: int | None = None) -> int:
    """Counts the steps of a duration, rounded to the nearest.

    Args:
      text: A number and a unit, such as "90 epochs".
      batch_size: Images per step.
      examples_per_epoch: Images in the training split.
      total_steps: Steps of the whole run; needed for percent.

    Raises:
      ConfigError: The text is malformed, or the unit is percent without `total_steps`.
    """
    value, unit = parse_duration(text)
    if unit == "percent":
        if total_steps is None:
            raise ConfigError(f'duration "{text}" is a share of the whole run; say the whole run in steps, epochs or examples')
        return round(value / 100 * total_steps)
    examples = {"steps": batch_size, "epochs": examples_per_epoch, "examples": 1}[unit]
    return round(value * examples / batch_size)
