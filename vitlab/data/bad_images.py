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
    """Counts and names the images that were left out, each once, and stops the run when they are too many.

    With a file, each becomes a line {"split", "name", "reason"} of it; what an earlier run has written there is not repeated.

    One bad image is always allowed, unless `max_fraction` is 0.
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
        """`max_fraction` of the source's images may be bad; `path` of the file, JSON lines; `fields` say why an image is bad."""
        self.source, self.split, self._fields = source, split, fields
        self._listing = _Listing(path) if path else None
        self.allowed = max(1, int(max_fraction * len(source))) if max_fraction > 0 else 0
        self.reasons: dict[int, str] = {}  # index -> why it cannot be decoded

    @property
    def counts(self) -> dict[str, int]:
        """Number of bad images met, by the kind of reason: what stands before a colon."""
        return dict(Counter(reason.partition(":")[0] for reason in self.reasons.values()))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, index: int) -> None:
        """Notes one image; only the first time does anything.

        Raises:
          BadImagesError: There are now more than allowed.
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
        """Numbers by reason, the most frequent first: "3 images were left out: 2 truncated, 1 empty"."""
        kinds = ", ".join(f"{count} {reason}" for reason, count in Counter(self.counts).most_common())
        one = len(self.reasons) == 1
        where = f"; their names are in {self._listing.path.name}" if self._listing else ""
        return f"{len(self.reasons)} image{'' if one else 's'} of {self.split} {'was' if one else 'were'} left out: {kinds}{where}"


def reason(source: Source, index: int, fields: Mapping[str, Kind] = CLASSIFICATION) -> str:
    """Why an image, or something said of it, cannot be read or decoded, in a few words."""
    try:
        decode_example(source[index], fields)
    except DecodeError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return "unreadable at first"


class _Listing:
    """JSON lines, one for each image; a file that cannot be written never ends a run."""

    def __init__(self, path: RunPath):
        """The file is read, and made if need be, when the first line comes."""
        self.path = path
        self._known: set[tuple[str, str]] | None = None
        self._waiting: list[dict[str, str]] = []  # lines that could not be written so far
        self._warned = False

    def add(self, line: dict[str, str]) -> None:
        """Adds a line, unless there is one of the same image, and those that could not be written before."""
        self._waiting.append(line)
        try:
            self._write()
        except OSError as error:
            self._known = None  # a line may have been cut off
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
