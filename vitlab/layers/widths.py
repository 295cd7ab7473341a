"""Check of the widths of a layer."""


def check_widths(**widths: int) -> None:
    """Refuses a layer without channels, since its initial values would divide by zero.

    Args:
      **widths: Number of channels or groups, by the name of the argument.

    Raises:
      ValueError: A width is below 1.
    """
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name}={width} must be at least 1")
