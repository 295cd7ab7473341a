"""The error about a user's mistake, and the conversion of other errors to it."""

import contextlib
from collections.abc import Iterator

from vitlab.plugins import raised_in_plugin


class ConfigError(ValueError):
    """The experiment is invalid; the message names the rule and the remedy."""


@contextlib.contextmanager
def refusing(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turns errors inside the block into a `ConfigError`, which a command shows as one line.

    Errors raised by the user's own code (see `vitlab.plugins`) pass unchanged, with their
    traceback.

    Args:
      *kinds: Errors that mean a mistake in the config.
      prefix: Beginning of the message.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, ConfigError) or raised_in_plugin(error):
            raise
        raise ConfigError(f"{prefix}{error}") from error
