"""Images that are already in memory."""

import dataclasses
import hashlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource:
    """Decoded images of one size in memory; the loader indexes `images` with whole batches."""

    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # int32 [n]
    class_names: tuple[str, ...]
    split: str = "images"  # name of the split, for `name_of`

    @property
    def channels(self) -> int:
        """Channels of the images: 1 (grey) or 3 (RGB)."""
        return self.images.shape[-1]

    @property
    def fingerprint(self) -> str:
        """Hash of pixels, labels and class names (10 ms for 10 MB)."""
        digest = hashlib.blake2b(repr((self.images.shape, self.class_names)).encode(), digest_size=8)
        digest.update(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def name_of(self, index: int) -> str:
        """Split and index of an image: "train/17"."""
        return f"{self.split}/{index}"
