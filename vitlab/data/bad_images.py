"""Images that cannot be read or decoded."""

import json
import logging
from collections import Counter
from collections.abc import Mapping

from vitlab.buckets import RunPath
from vitlab.data.fields import CLASSIFICATION, Kind, decode_example
from vitlab.data.headers import DecodeError
from vitlab.data.source import Source
from vitlab.files import open_to_append, parse_json, whole_lines

logger = logging.getLogger(__name__)


class BadImagesError(RuntimeError):
    """More images than allowed cannot be decoded."""


class BadImages:
    """Counts and names the images that were left out, and stops the run when there are too many.

    Each image counts once. With a file, each image adds a line {"split", "name", "reason"} to it,
    unless an earlier run has written that line. One bad image is always allowed, unless
    `max_fraction` is 0.
    """

    def __init__(
        self,
        source: Source,
        max_fraction: float,
        *,
        split: str,
        path: RunPath | None = None,
        fields: Mapping[str, Kind] = CLASSIFICATION,
    ):
        """Allows `max_fraction` of the source's images to be bad.

        Args:
          source: The images.
          max_fraction: Allowed fraction of bad images, in [0, 1].
          split: Name of the split, for messages and the file.
          path: File of JSON lines that lists the bad images; None writes no file.
          fields: Fields to decode when the reason is looked for.
        """
        self.source, self.split, self._fields = source, split, fields
        self._listing = _Listing(path) if path else None
        self.allowed = max(1, int(max_fraction * len(source))) if max_fraction > 0 else 0
        self.reasons: dict[int, str] = {}  # index -> why it cannot be decoded

    @property
    def counts(self) -> dict[str, int]:
        """Number of bad images by kind of reason, the part of the reason before a colon."""
        return dict(Counter(reason.partition(":")[0] for reason in self.reasons.values()))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, index: int) -> None:
        """Records one bad image; a repetition does nothing.

        Raises:
          BadImagesError: More images are bad than allowed.
        """
        if index in self.reasons:
            return
        self.reasons[index] = why = reason(self.source, index, self._fields)
        name = self.source.name_of(index)
        logger.warning("%s cannot be decoded (%s); it is left out", name, why)
        if self._listing:
            self._listing.add({"split": self.split, "name": name, "reason": why})
        if len(self.reasons) > self.allowed:
            raise BadImagesError(
                f"{len(self.reasons)} of {len(self.source)} images cannot be decoded, more than data.max_bad_fraction allows "
                f"({self.allowed}); the last is {name} ({why})"
            )

    def summary(self) -> str:
        """The counts by reason, most frequent first.

        An example: "3 images of train were left out: 2 truncated, 1 empty".
        """
        kinds = ", ".join(f"{count} {reason}" for reason, count in Counter(self.counts).most_common())
        one = len(self.reasons) == 1
        where = f"; their names are in {self._listing.path.name}" if self._listing else ""
        return f"{len(self.reasons)} image{'' if one else 's'} of {self.split} {'was' if one else 'were'} left out: {kinds}{where}"


def reason(source: Source, index: int, fields: Mapping[str, Kind] = CLASSIFICATION) -> str:
    """The reason, in a few words, why an image or another field of its example is unreadable."""
    try:
        decode_example(source[index], fields)
    except DecodeError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return "unreadable at first"


class _Listing:
    """A file of JSON lines, one for each image; a failed write does not end the run."""

    def __init__(self, path: RunPath):
        """Takes the path only; the file is read and created with the first line."""
        self.path = path
        self._known: set[tuple[str, str]] | None = None
        self._waiting: list[dict[str, str]] = []  # lines that could not be written so far
        self._warned = False

    def add(self, line: dict[str, str]) -> None:
        """Adds a line unless the file has it, together with lines whose writing failed before."""
        self._waiting.append(line)
        try:
            self._write()
        except OSError as error:
            self._known = None  # the failed write may have left half a line
            if not self._warned:
                logger.warning("%s cannot be written (%s); the run goes on", self.path.name, error.strerror or error)
            self._warned = True

    def _write(self) -> None:
        if self._known is None:
            self._known = set(filter(None, map(_key, whole_lines(self.path))))
        new = {(line["split"], line["name"]): line for line in self._waiting}
        with open_to_append(self.path) as file:
            file.writelines(json.dumps(line) + "\n" for key, line in new.items() if key not in self._known)
        self._known |= new.keys()
        self._waiting.clear()


def _key(line: bytes) -> tuple[str, str] | None:
    """Split and name in a line of the listing; None if the line is damaged."""
    try:
        values = parse_json(line)
        return str(values["split"]), str(values["name"])
    except (ValueError, TypeError, KeyError):
        return None
