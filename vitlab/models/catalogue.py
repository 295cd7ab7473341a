"""The published checkpoints of the variants, by short names: `catalogue.csv` beside this file.

Names of repositories and licences are those of timm's and OpenCLIP's sources; a row without a
licence is one whose sources say none. An address that is no "hf://" is a file that its authors give
on request.
"""

import csv
import dataclasses
import functools
import importlib.resources
import os
from collections.abc import Mapping

from vitlab.models.preprocessing import Preprocessing

# Statistics of pixels that a checkpoint was trained with where they are not its variant's.
PIXELS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "": {},
    "half": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "satellite": {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)},  # DINOv3, SAT-493M
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A row of the catalogue."""

    variant: str
    name: str  # short name, one of a kind among those of its variant
    address: str  # hf://owner/name[/file], or the name of a file that is to be had by hand
    licence: str  # as the hub calls it; "" where it is not known here
    figure: str  # published accuracy, in percent
    measure: str  # what `figure` is
    source: str  # where the figure, or else the address, was read
    pixels: str  # a key of PIXELS
    sha256: str  # hash of the file, or its first digits; "" where none is published

    @property
    def by_hand(self) -> bool:
        """Whether no library can fetch it."""
        return not self.address.startswith("hf://")


@functools.cache
def listed() -> tuple[Listed, ...]:
    """Returns all rows, in the order of the file."""
    text = importlib.resources.files("vitlab.models").joinpath("catalogue.csv").read_text("utf-8")
    return tuple(Listed(**row) for row in csv.DictReader(text.splitlines()))


def checkpoints_of(variant: str) -> dict[str, Listed]:
    """Returns the checkpoints of a variant by their short names."""
    return {row.name: row for row in listed() if row.variant == variant}


def address_of(variant: str, source: str) -> str:
    """Returns the address of a checkpoint that may be named shortly; a path or address as it is.

    Raises:
      ValueError: The checkpoint is to be had by hand, or the source is a bare word that names none
        of this variant.
    """
    rows = checkpoints_of(variant)
    if os.path.exists(source):
        return source
    if source in rows:
        if rows[source].by_hand:
            raise ValueError(f"{source} of {variant} is given on request: give the path of your {rows[source].address}")
        return rows[source].address
    if source.isidentifier() and any(row.name == source for row in listed()):
        raise ValueError(
            f'{variant} has no checkpoint "{source}"; the catalogue has {", ".join(rows) or "none"}: give a file, or one of these'
        )
    return source


def preprocessing_of(variant: str, source: str | None, preprocessing: Preprocessing) -> Preprocessing:
    """Returns a variant's preparation of images as one of its checkpoints needs it."""
    row = checkpoints_of(variant).get(source or "")
    return dataclasses.replace(preprocessing, **PIXELS[row.pixels]) if row else preprocessing
