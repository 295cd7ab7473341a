"""Images and labels: sources, decoding, augmentation and the loader."""

from vitlab.data.arrays import ArraySource
from vitlab.data.bad_images import BadImages, BadImagesError
from vitlab.data.decode import DecodeError, decode
from vitlab.data.loader import Batches, eval_batches, train_batches
from vitlab.data.policies import make_policy
from vitlab.data.source import Source, open_source

__all__ = [
    "ArraySource",
    "BadImages",
    "BadImagesError",
    "Batches",
    "DecodeError",
    "Source",
    "decode",
    "eval_batches",
    "make_policy",
    "open_source",
    "train_batches",
]
