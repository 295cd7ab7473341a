"""Images that cannot be read or decoded."""

import logging
from collections import Counter

from vitlab.data.decode import DecodeError, decode
from vitlab.data.source import Source

logger = logging.getLogger(__name__)


class BadImagesError(RuntimeError):
    """More images than allowed cannot be decoded."""


class BadImages:
    """Counts and names the images that were left out, each once, and stops the run when they are too many.

    One bad image is always allowed, unless `max_fraction` is 0.
    """

    def __init__(self, source: Source, max_fraction: float):
        """`max_fraction` of the source's images may be bad."""
        self.source = source
        self.allowed = max(1, int(max_fraction * len(source))) if max_fraction > 0 else 0
        self.reasons: dict[int, str] = {}  # index -> why it cannot be decoded

    @property
    def counts(self) -> dict[str, int]:
        """Number of bad images met, by reason."""
        return dict(Counter(self.reasons.values()))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, index: int) -> None:
        """Notes one image; only the first time does anything.

        Raises:
          BadImagesError: There are now more than allowed.
        """
        if index in self.reasons:
            return
        self.reasons[index] = reason = self._reason(index)
        logger.warning("%s cannot be decoded (%s); it is left out", self.source.name_of(index), reason)
        if len(self.reasons) > self.allowed:
            raise BadImagesError(
                f"{len(self.reasons)} of {len(self.source)} images cannot be decoded, more than data.max_bad_fraction allows "
                f"({self.allowed}); the last is {self.source.name_of(index)} ({reason})"
            )

    def _reason(self, index: int) -> str:
        try:
            decode(self.source[index]["image"], self.source.channels)
        except DecodeError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
        return "unreadable at first"
