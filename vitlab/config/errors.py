"""The error of a user's mistake, and how the errors of other code become one."""

import contextlib
from collections.abc import Iterator

from vitlab.plugins import raised_in_plugin


class ConfigError(ValueError):
    """The experiment asks for something that cannot be; the message names the rule and the remedy."""


@contextlib.contextmanager
def refusing(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turns errors inside the block into a `ConfigError`, which a command shows as one line.

    Errors that were raised while the user's own code ran (see `vitlab.plugins`) pass as they are and so keep their traceback.

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
