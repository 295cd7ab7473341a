"""Widths that a layer can have."""


def check_widths(**widths: int) -> None:
    """Refuses a layer without channels, whose initial values would divide by zero.

    Args:
      **widths: Channels or groups by the name of the argument that has them.

    Raises:
      ValueError: A width is below 1.
    """
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name}={width} must be at least 1")
